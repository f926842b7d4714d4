"""Real pretrained weights: where the libraries look for them, how they are checked, how they are fetched.

Split from :mod:`vqbench.pretrained` so that ``doctor`` and ``fetch-weights`` need no torch.
"""

from __future__ import annotations

import http.client
import os
import pickle
import struct
import tempfile
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from vqbench.artifacts import sha256_file
from vqbench.clone import WORKFLOW, read_yaml
from vqbench.errors import MissingWeights, SpecError, nearest
from vqbench.progress import Progress
from vqbench.specs import PretrainedSpec, parse

if TYPE_CHECKING:
    from vqbench.papers import Bench

# What torch, pickle and safetensors raise over a file that is no weights: its bytes are read as instructions.
UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, struct.error, pickle.PickleError, SafetensorError,
)  # fmt: skip
LARGEST = 2 << 30  # bytes; a download that says it is larger, or grows beyond, is refused


def hub_folder() -> Path:
    """Where torch.hub, and with it torch-fidelity and torchvision, keep weights."""
    home = os.environ.get("TORCH_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


@lru_cache
def networks() -> dict[str, PretrainedSpec]:
    """workflow/pretrained.yaml: the first entry of each kind of network whose weights are published."""
    found: dict[str, PretrainedSpec] = {}
    for name, data in read_yaml(WORKFLOW / "pretrained.yaml").items():
        if "url" in data:
            found.setdefault(data["kind"], parse(PretrainedSpec, data, f"pretrained '{name}'"))
    return found


def fetch_again(kind: str) -> str:
    """What an error about a weights file ends with: address, place and digest of the published one."""
    spec = networks().get(kind)
    if spec is None:
        return "give another file"
    return (
        f"fetch it again: {spec.url} to {hub_folder() / str(spec.filename)} ({_command(spec)} does), its SHA-256 "
        f"{_known_digest(spec)}"
    )


def _command(spec: PretrainedSpec) -> str:
    """What fetches a network: the verb takes the name of its entry, not the kind."""
    entries = read_yaml(WORKFLOW / "pretrained.yaml")
    name = next((name for name, data in entries.items() if data.get("filename") == spec.filename), "NAME")
    return f"vqbench fetch-weights {name}"


def locate(spec: PretrainedSpec) -> Path:
    """The weights file, in torch's hub cache.

    Raises:
        MissingWeights: not there; says what to fetch and where it goes.
    """
    path = hub_folder() / str(spec.filename)
    if not path.is_file():
        raise MissingWeights(
            f"weights '{spec.filename}' are not in {path.parent}: fetch {spec.url} there "
            f"({_command(spec)} does), its SHA-256 {_known_digest(spec)}; without them the demo scale runs "
            "(--scale demo), and `vqbench evaluate --protocol demo`, on networks that it trains itself (make demo)"
        )
    return path


def check_weights(spec: PretrainedSpec, path: Path) -> str:
    """SHA-256 of a weights file.

    Raises:
        MissingWeights: it does not start with the published prefix (another file, or a damaged one).
    """
    digest = sha256_file(path)
    if spec.sha256_prefix and not digest.startswith(spec.sha256_prefix):
        raise MissingWeights(
            f"{path} has SHA-256 {digest[:16]}..., expected {spec.sha256_prefix}...: remove it and fetch {spec.url} again"
        )
    return digest


def _known_digest(spec: PretrainedSpec) -> str:
    return (
        f"starts with {spec.sha256_prefix}" if spec.sha256_prefix else "is not published and is recorded at first use"
    )


def fetch(bench: Bench, name: str) -> Path:
    """Download a network's weights over https to torch's hub cache, checked before they get their name.

    Raises:
        SpecError: unknown network, or one that is not downloaded.
        MissingWeights: the download failed, is too large, or has another digest.
    """
    known = {k: v for k, v in bench.pretrained.items() if v.url}
    if name not in known:
        raise SpecError(f"no downloadable network '{name}'; {nearest(name, known)}")
    spec, target = known[name], hub_folder() / str(known[name].filename)
    if target.is_file():
        check_weights(spec, target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        _download(str(spec.url), Path(temporary))
        check_weights(spec, Path(temporary))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """A redirect must stay on https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request."""
        if not newurl.startswith("https://"):
            raise MissingWeights(f"{req.full_url} leads to {newurl}, which is not https; it is not fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_HttpsOnly)


def _download(url: str, path: Path, largest: int = LARGEST) -> None:
    """Write what `url` answers to `path`: never more than `largest` bytes, whatever length the server says."""
    if not url.startswith("https://"):
        raise MissingWeights(f"{url} is not https; it is not fetched")
    too_large = MissingWeights(f"{url} is larger than {largest / (1 << 30):.3g} GiB; it is not what it should be")
    try:
        with _OPENER.open(url, timeout=60) as answer, path.open("wb") as file:
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
            if total > largest:
                raise too_large
            progress = Progress(total, path.name, "B")
            while chunk := answer.read(1 << 20):
                if progress.done + len(chunk) > largest:
                    raise too_large
                file.write(chunk)
                progress.update(len(chunk))
            if total and progress.done != total:
                raise MissingWeights(f"{url} ended after {progress.done} of {total} bytes; fetch it again")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, OSError) as error:
        raise MissingWeights(
            f"could not fetch {url}: {error}; fetch it elsewhere and copy it to {path.parent}"
        ) from None
