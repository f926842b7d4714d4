"""FID and KID by clean-fid's own functions, in the mode that a protocol describes.

clean-fid scores folders: it has no place for images in memory, nor for a weights file elsewhere than where it puts it.
So its parts are called in its order: resizer, network, distance.

Letters: n generated, m reference images, B images of a batch, H W pixels, d feature length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.eval.library_torch_fidelity import harmless, weights_errors
from vqbench.eval.protocols import Kernel, Protocol

TORCHSCRIPT = "inception-2015-12-05.pt"  # the only name under which clean-fid looks for its network

Mode = Literal["clean", "legacy_pytorch", "legacy_tensorflow"]


def clean_mode(protocol: Protocol) -> Mode | None:
    """The mode of clean-fid that a protocol describes, None where it describes another library."""
    judge = protocol.judge
    if judge.network != "inception-v3" or judge.size != 299 or judge.features != "2048":
        return None
    if judge.resize == "tf1-bilinear" and any(s.startswith("GaParmar/clean-fid:") for s in protocol.source):
        return "legacy_tensorflow"
    modes: dict[str, Mode] = {"pil-bicubic": "clean", "torch-bilinear": "legacy_pytorch"}
    return modes.get(judge.resize)


def clean_features(images: np.ndarray, mode: Mode, weights: Path, batch: int, device: torch.device) -> np.ndarray:
    """clean-fid's features (n, 2048) float32 of images (n, H, W, 3) uint8: its resizer, image by image, its network.

    Where `weights` is not the TorchScript file that clean-fid fetches, torch-fidelity's port of the same graph stands in
    its place: without its own resize in mode ``clean``, with it in mode ``legacy_tensorflow``. In mode
    ``legacy_pytorch`` it is clean-fid's own network (pytorch-fid's) with the weights read from this file.

    Raises:
        MissingWeights: the file is neither.
    """
    from cleanfid.fid import get_batch_features
    from cleanfid.resize import build_resizer

    with quiet():
        network, resize = clean_network(mode, weights, device), build_resizer(mode)
        found = []
        for start in range(0, len(images), batch):
            resized = np.stack([resize(np.array(image)) for image in images[start : start + batch]])
            floats = torch.from_numpy(resized).permute(0, 3, 1, 2).float()  # (B, 3, 299, 299) in 0..255
            found.append(get_batch_features(floats, network, device))
    return np.concatenate(found)


def clean_network(mode: Mode, weights: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Images (B, 3, 299, 299) in 0..255 -> (B, 2048); of any size in mode ``legacy_tensorflow``."""
    from cleanfid.inception_torchscript import InceptionV3W
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if mode == "legacy_pytorch":
        return _pytorch_fid(weights, device)
    with weights_errors(weights, "inception-v3"):
        if weights.name == TORCHSCRIPT:
            inside = mode == "legacy_tensorflow"
            script: nn.Module = InceptionV3W(str(weights.parent), download=False, resize_inside=inside)
            return script.to(device).eval()
        path = harmless(weights)
        whole = FeatureExtractorInceptionV3("port", ["2048"], feature_extractor_weights_path=path).to(device)
    if mode == "legacy_tensorflow":
        return lambda x: whole(x.byte())[0]
    # Its children stand in the order in which its forward calls them; `fc` is the last.
    trunk = nn.Sequential(*(child for name, child in whole.named_children() if name != "fc"), nn.Flatten())
    return lambda x: trunk((x - 128) / 128)


def _pytorch_fid(weights: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    from cleanfid import inception_pytorch

    def load(*_: Any, **__: Any) -> Any:  # in place of its download: the network takes no path
        return torch.load(weights, map_location="cpu", weights_only=True)

    with weights_errors(weights, "inception-v3"), patch.object(inception_pytorch, "load_state_dict_from_url", load):
        network = inception_pytorch.InceptionV3(output_blocks=[3], resize_input=False).to(device).eval()
    return lambda x: network(x / 255)[0].squeeze(-1).squeeze(-1)


def clean_distances(
    names: Sequence[str], generated: np.ndarray, reference: np.ndarray, kernel: Kernel | None
) -> dict[str, float]:
    """FID and KID by clean-fid's functions, from features (n, d) and (m, d) float32.

    Raises:
        SpecError: its matrix root is not real, as happens with fewer images than features.
    """
    from cleanfid.fid import fid_from_feats, kernel_distance

    found: dict[str, float] = {}
    for name in names:
        if name == "kid" and kernel is not None:
            with legacy_seed(kernel.seed):
                found[name] = kernel_distance(reference, generated, kernel.subsets, kernel.subset_size)
            continue
        try:
            with quiet():  # scipy will drop an argument that it gives
                found[name] = float(fid_from_feats(generated, reference))
        except ValueError as error:
            n = min(len(generated), len(reference))
            raise SpecError(
                f"clean-fid's sqrtm fails on {n} images ({error}); give more, or --engine vqbench"
            ) from None
    return found


@contextmanager
def legacy_seed(seed: int) -> Iterator[None]:
    """numpy's global generator seeded, and put back: clean-fid draws from it."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def quiet() -> warnings.catch_warnings[None]:
    """clean-fid uses torch.jit and arguments of Pillow and SciPy that are deprecated."""
    return warnings.catch_warnings(action="ignore")
