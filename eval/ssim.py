"""SSIM: scikit-image's, on RGB uint8, mean over channels, window positions and images."""

from __future__ import annotations

from typing import Any

from skimage.metrics import structural_similarity

from vqbench.errors import SpecError
from vqbench.eval.base import Metric
from vqbench.eval.protocols import Window


class Ssim(Metric):
    """Structural similarity in [-1, 1] (Wang et al. 2004).

    The window decides the number (.854 uniform 7x7, .804 Gaussian on the same pairs), so the protocol states it.
    The uniform window uses sample covariances as scikit-image does by default, the Gaussian one those of the paper.
    """

    unit = ""
    higher_is_better = True
    needs = "pairs"

    def __init__(self, protocol: Window) -> None:
        gaussian = protocol.window == "gaussian"
        self.size = protocol.size
        self.options: dict[str, Any] = {
            "win_size": protocol.size, "data_range": protocol.data_range, "channel_axis": -1,
            "gaussian_weights": gaussian, "use_sample_covariance": not gaussian,
        } | ({"sigma": protocol.sigma} if gaussian else {})  # fmt: skip
        self.total, self.count = 0.0, 0

    def update(self, *batch: Any) -> None:
        """Add originals and reconstructions, both uint8 (B, H, W, 3).

        Raises:
            SpecError: the images are smaller than the window.
        """
        originals, reconstructions = batch
        if min(originals.shape[1:3]) < self.size:
            raise SpecError(
                f"SSIM's window of {self.size} is larger than images of {originals.shape[1:3]}; mend 'ssim.size'"
            )
        for original, reconstruction in zip(originals, reconstructions, strict=True):
            self.total += float(structural_similarity(original, reconstruction, **self.options))
            self.count += 1

    def compute(self) -> dict[str, float]:
        """``{"ssim": mean}``; NaN before the first pair."""
        return {"ssim": self.total / self.count if self.count else float("nan")}
