"""PSNR in dB: scikit-image's, per RGB image on uint8, then the mean over images."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.metrics import peak_signal_noise_ratio

from vqbench.eval.base import Metric
from vqbench.eval.protocols import SignalNoise


class Psnr(Metric):
    """Peak signal-to-noise ratio, 10 log10(data_range^2 / MSE) with the MSE over one image's pixels and channels.

    Pooling the MSE over images instead gives another number (27 instead of 35 dB on one set): the mean is over images.
    Identical pairs are infinite; they are left out of the mean and of `count`, and counted in `identical`.
    """

    unit = "dB"
    higher_is_better = True
    needs = "pairs"

    def __init__(self, protocol: SignalNoise) -> None:
        self.data_range = protocol.data_range
        self.total, self.count, self.identical = 0.0, 0, 0

    def update(self, *batch: Any) -> None:
        """Add originals and reconstructions, both uint8 (B, H, W, 3)."""
        originals, reconstructions = batch
        for original, reconstruction in zip(originals, reconstructions, strict=True):
            if np.array_equal(original, reconstruction):
                self.identical += 1
                continue
            self.total += float(peak_signal_noise_ratio(original, reconstruction, data_range=self.data_range))
            self.count += 1

    def compute(self) -> dict[str, float]:
        """``{"psnr": dB}``; NaN where no pair differed."""
        return {"psnr": self.total / self.count if self.count else float("nan")}
