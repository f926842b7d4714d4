"""Step ``classifier-scores``: top-1 of a token classifier on the validation images' tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqbench.artifacts import read_tensors
from vqbench.eval.accuracy import TopOne, share_right
from vqbench.eval.classifier import open_codes
from vqbench.eval.scoring import entry, setting, write_scores
from vqbench.eval.token_classifier import TokenClassifier
from vqbench.jobs import Finished, Job
from vqbench.specs import ClassifierSpec
from vqbench.tokenizers.base import Quantizer
from vqbench.top_one import count_right


def run(job: Job) -> dict[str, Any]:
    """Write ``scores.json`` with top1, in %."""
    where, name = setting(job), job.spec["classifier"]
    spec: ClassifierSpec = job.bench.classifiers[name]
    model = open_classifier(spec, job.upstream("classifier", name), where.device)
    tokens = job.upstream("tokens", f"{spec.tokenizer}/{spec.dataset}/validation")
    ids, labels = np.load(tokens.file("ids.npy"), mmap_mode="r"), np.load(tokens.file("labels.npy"))
    right = right_of(model, open_codes(job, spec.tokenizer), ids, labels, where.protocol.batch)
    write_scores(job, {"top1": entry(TopOne(), share_right(right, len(labels)))})
    return {"images": len(labels), "protocol": where.protocol.name}


def open_classifier(spec: ClassifierSpec, finished: Finished, device: torch.device) -> TokenClassifier:
    """A trained classifier in eval mode with frozen weights."""
    with torch.device("meta"):
        model = TokenClassifier(spec)
    model.to_empty(device=device)
    model.load_state_dict(read_tensors(finished.file("model.safetensors")))
    return model.eval().requires_grad_(False)


def right_of(model: TokenClassifier, codes: Quantizer, ids: np.ndarray, labels: np.ndarray, batch: int) -> int:
    """How many of the ids (n, N, Q) are given their own label first."""
    place = next(model.parameters()).device

    def logits_of(part: slice) -> Tensor:
        found: Tensor = model(codes.lookup(torch.from_numpy(np.array(ids[part], dtype=np.int64)).to(place)))
        return found  # (B, classes)

    return count_right(logits_of, labels, batch)
