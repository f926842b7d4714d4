"""A vision transformer that classifies token maps, from MAE's weights or from scratch.

VQGAN-LC (Sec. 3.3) fine-tunes MAE's ViT-B "on all token maps" and does not say how they are fed. Here (ours) the codes of a
map, looked up in the frozen codebook, stand where pixels stood: one linear layer projects each code to the width, the rest
is MAE's network for fine-tuning (facebookresearch/mae:models_vit.py, mean pooling).

Letters: B images, C h w the latent map, p the side of a patch, T patches, D width, M side of the file's map of patches.
"""

from __future__ import annotations

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vqbench.errors import SpecError
from vqbench.eval.judge_kinds import fitted_places
from vqbench.eval.judge_network import Weights
from vqbench.generators.networks.scale import Scale
from vqbench.specs import ClassifierSpec

HEAD_STD = 2e-5  # of a new head upon pretrained weights: facebookresearch/mae:main_finetune.py
# What MAE's file has for pixels, and for the norm that mean pooling replaces: main_finetune.py leaves the latter out too.
UNUSED = ("patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias")


class TokenClassifier(nn.Module):
    """Latents, divided by their deviation, to logits. Its weights are drawn from torch's global generator.

    Raises:
        SpecError: the heads do not divide the width, or patches the map.
    """

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__()
        network, (channels, side, _) = spec.network, spec.tokens.latent_shape
        if network.width % network.heads:
            raise SpecError(f"classifier: width {network.width} is no multiple of the {network.heads} heads")
        if side % network.patch:
            raise SpecError(f"classifier: patch {network.patch} does not divide the token map's side {side}")
        self.scale = Scale("std")
        self.vit = VisionTransformer(
            img_size=side, patch_size=network.patch, in_chans=channels, num_classes=spec.num_classes, global_pool="avg",
            embed_dim=network.width, depth=network.layers, num_heads=network.heads, mlp_ratio=network.mlp_ratio,
            drop_path_rate=network.drop_path,
        )  # fmt: skip

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, classes)."""
        logits: Tensor = self.vit(self.scale(latents))
        return logits

    def start_from(self, path: Path) -> None:
        """Take the class token, positions and blocks of MAE's ViT from its file; the projection and the head stay new.

        Raises:
            MissingWeights: the file cannot be read, or is not MAE's network of this depth and width.
        """
        file, mine = Weights(path, "mae-vitb16", inside="model"), self.vit.state_dict()
        new = {name for name in mine if name.startswith(("patch_embed.", "fc_norm.", "head."))}
        for name in UNUSED:
            file.state.pop(name, None)
        patches = file.state["pos_embed"].shape[1] if "pos_embed" in file.state else 0
        kept = {"pos_embed": file.take("pos_embed", 1, patches, mine["pos_embed"].shape[2])}
        kept |= {name: file.take(name, *mine[name].shape) for name in mine if name not in (*new, "pos_embed")}
        file.end()
        kept["pos_embed"] = fitted_places(kept["pos_embed"], self.vit.patch_embed.grid_size[0], offset=0.0)
        self.vit.load_state_dict({**mine, **kept})
        assert isinstance(self.vit.head, nn.Linear)
        nn.init.trunc_normal_(self.vit.head.weight, std=HEAD_STD)


def forward_flops(spec: ClassifierSpec) -> tuple[float, int]:
    """(floating-point operations of a pass for one image, parameters), from the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = TokenClassifier(spec)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *spec.tokens.latent_shape))
    return float(counter.get_total_flops()), sum(p.numel() for p in model.parameters())
