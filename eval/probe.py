"""Step ``probe``: linear probing of a frozen tokenizer's latents, before and after quantization.

Letters: n images, B images of a batch, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqbench.errors import ArtifactError
from vqbench.eval.accuracy import TopOne, share_right
from vqbench.eval.base import Estimate
from vqbench.eval.probe_fit import Labelled, fit
from vqbench.eval.protocols import read_protocol
from vqbench.eval.scoring import entry, setting, write_scores
from vqbench.jobs import Finished, Job
from vqbench.top_one import count_right

WHERE = ("before", "after")


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with probe_before and probe_after: top-1 on validation, in %.

    Raises:
        ArtifactError: the features hold no row per label, or are pooled otherwise than the protocol says.
        Diverged: the probe's loss became NaN or infinite.
    """
    where, spec = setting(job), job.spec
    recipe = where.protocol.probe
    name = f"{spec['tokenizer']}/{job.bench.tokenizers[spec['tokenizer']].dataset}"
    parts = [job.upstream("tokens", f"{name}/{split}") for split in ("train", "validation")]
    metrics: dict[str, Any] = {}
    fits: dict[str, Any] = {}
    for place in WHERE:
        train, validation = (read_features(part, place, recipe.pooling) for part in parts)
        fitted = fit(train, spec["num_classes"], recipe, where.device, f"probe {name} {place}")
        found = top_one(fitted.model, validation, recipe.batch or 1024, where.device)
        metrics[f"probe_{place}"] = entry(TopOne(), found)
        fits[place] = {"steps": fitted.steps, "converged": fitted.converged}
    write_scores(job, metrics, probes=fits)
    return {"images": metrics["probe_before"]["n"], "protocol": read_protocol(spec["protocol"]).name}


def read_features(tokens: Finished, place: str, pooling: str) -> Labelled:
    """Memory-mapped features `place` quantization, and their labels."""
    features = np.load(tokens.file(f"features_{place}.npy"), mmap_mode="r")
    labels = np.load(tokens.file("labels.npy"))
    if len(features) != len(labels):
        raise ArtifactError(f"{'/'.join(tokens.key)}: {len(features)} features, {len(labels)} labels; tokenize again")
    if (made := tokens.facts.get("pooling", "mean")) != pooling:
        raise ArtifactError(f"{'/'.join(tokens.key)} has '{made}' features, the protocol's probe reads '{pooling}'; "
                            "tokenize again under this protocol")  # fmt: skip
    plain = tokens.facts["images"]  # further views of the same images are the generators', not the probe's
    return Labelled(features[:plain], labels[:plain])


def top_one(model: nn.Module, data: Labelled, batch: int, device: torch.device) -> Estimate:
    """Top-1 accuracy in %, with its Wilson interval."""
    kind = next(model.parameters()).dtype

    def logits_of(part: slice) -> Tensor:
        found: Tensor = model(torch.from_numpy(np.array(data.features[part])).to(device, kind))  # (B, K)
        return found

    return share_right(count_right(logits_of, data.labels, batch), len(data.labels))
