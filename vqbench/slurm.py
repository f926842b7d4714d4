"""What ``vqbench doctor --profile slurm`` looks at: the cluster that jobs would be sent to. Asks Slurm, submits nothing."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from vqbench.cluster import FILE, GROUP, SLICED, ClusterSpec, asks, cluster, group_of, minutes
from vqbench.errors import nearest
from vqbench.papers import Bench, Key

Finding = tuple[bool, str]
Asked = dict[str, int | str]
EXAMPLE = "workflow/profiles/slurm/cluster.example.yaml"


@dataclass(frozen=True)
class Partition:
    """One partition: its time limit in minutes (None: none) and the GPU models of its nodes ("" where they have no name)."""

    minutes: int | None
    gpus: frozenset[str]


def examine_slurm(found: Bench, keys: list[Key]) -> Iterator[Finding]:
    """(whether it is well, what was seen and how to mend it) for sbatch, partitions, GPUs, limits and the account."""
    mine = cluster()
    if not shutil.which("sbatch"):
        yield False, "slurm: no sbatch here: log in to the cluster's login node, or load its module (module load slurm)"
        return
    listed = _run("sinfo", "-h", "-o", "%P|%l|%G")
    if listed.returncode:
        yield False, f"slurm: sinfo fails: {_said(listed)}; ask whether the cluster is up"
        return
    partitions, default = _partitions(listed.stdout)
    jobs = [_job(found, key) for key in keys]
    yield from _account(mine)
    yield from _unsliced(found, keys)
    for what, some in (("gpu", [j for j in jobs if j["gpu"]]), ("cpu", [j for j in jobs if not j["gpu"]])):
        if some:
            yield from _partition(f"{what}_partition", str(some[0]["slurm_partition"]) or default, partitions, some)


def _job(found: Bench, key: Key) -> Asked:
    """What is asked for `key`; for the last step of a group, the minutes of all of its steps, as Snakemake sums them."""
    if key[0] != GROUP[-1] or not group_of(found, key):
        return asks(found, key)
    return asks(found, key) | {"runtime": sum(minutes(found, (kind, key[1])) for kind in GROUP)}


def _unsliced(found: Bench, keys: list[Key]) -> Iterator[Finding]:
    """What keeps no state has to end within one job: cut to `longest` it would time out again and again."""
    longest = cluster().longest
    taken: dict[str, int] = {}
    for key in keys:
        if key[0] not in SLICED:
            taken[key[0]] = max(minutes(found, key), taken.get(key[0], 0))
    for kind, most in taken.items():
        if most > longest:
            planned = found.overlay.resources[kind]["runtime"] == "plan"
            less = (
                f"tflops_fp32 or gpus in {FILE}" if planned else f"its 'runtime' in workflow/scales/{found.scale}.yaml"
            )
            yield False, (f"longest: {kind} takes {most} minutes and cannot be cut into slices, longest is {longest}: set "
                          f"longest to {most} in {FILE}, with a partition that allows it; or correct"
                          f" {less}")  # fmt: skip


def _partition(key: str, name: str, partitions: dict[str, Partition], jobs: list[Asked]) -> Iterator[Finding]:
    where = f"set {key} in {FILE} (see {EXAMPLE})"
    if not name:
        yield False, f"partition: the cluster has no default one: {where}; known: {', '.join(sorted(partitions))}"
        return
    if name not in partitions:
        yield False, f"partition: there is no partition '{name}'; {nearest(name, partitions)}: {where}"
        return
    one, longest = partitions[name], max(int(j["runtime"]) for j in jobs)
    if one.minutes is not None and longest > one.minutes:
        yield False, (f"partition {name} ends jobs after {one.minutes} minutes, one asks for {longest}: set longest to "
                      f"{one.minutes} in {FILE}, or {where}")  # fmt: skip
        return
    model = str(jobs[0]["gpu_model"])
    if jobs[0]["gpu"] and not one.gpus:
        yield False, f"partition {name} has no GPU: {where}"
    elif model and model not in one.gpus:
        has = ", ".join(sorted(one.gpus - {""})) or "none with a name"
        yield False, f"no node of partition {name} has a GPU of model '{model}'; it has {has}: set gpu_model in {FILE}"
    else:
        yield _accepted(name, jobs)


def _accepted(name: str, jobs: list[Asked]) -> Finding:
    """Whether Slurm would take the largest job, by its own word (``sbatch --test-only``)."""
    most = {what: max(int(j[what]) for j in jobs) for what in ("gpu", "mem_mb", "runtime", "cpus_per_task")}
    gpus = (
        [f"--gpus={g}:{most['gpu']}" if (g := jobs[0]["gpu_model"]) else f"--gpus={most['gpu']}"] if most["gpu"] else []
    )
    account = [f"--account={a}"] if (a := jobs[0]["slurm_account"]) else []
    tried = _run("sbatch", "--test-only", f"--partition={name}", f"--mem={most['mem_mb']}", f"--time={most['runtime']}",
                 "--nodes=1", "--ntasks=1", f"--cpus-per-task={most['cpus_per_task']}", *gpus, *account, "--wrap=true")  # fmt: skip
    size = f"{most['gpu']} GPU, {most['cpus_per_task']} CPUs, {most['mem_mb'] / 1000:g} GB, {most['runtime']} minutes"
    if tried.returncode:
        return False, (f"partition {name}: Slurm refuses the largest job ({size}): {_said(tried)}: lower 'resources' in "
                       f"workflow/scales, or choose another partition in {FILE}")  # fmt: skip
    return True, f"partition {name}: takes the largest job ({size})"


def _account(mine: ClusterSpec) -> Iterator[Finding]:
    user = getpass.getuser()
    listed = _run("sacctmgr", "-n", "-P", "show", "associations", f"user={user}", "format=account")
    known = sorted(set(listed.stdout.split()))
    if listed.returncode or not known:
        yield (
            True,
            f"account {mine.account or '(none set)'}: not checked, this cluster keeps no accounts ({_said(listed)})",
        )
    elif mine.account and mine.account not in known:
        yield (
            False,
            f"account: {user} has no account '{mine.account}'; {nearest(mine.account, known)}: set account in {FILE}",
        )
    else:
        yield True, f"account {mine.account or 'by default'}: {user} has {', '.join(known)}"


def _partitions(text: str) -> tuple[dict[str, Partition], str]:
    """Partitions of ``sinfo -o "%P|%l|%G"``, a line for each kind of node, and the default one's name ("" for none)."""
    found: dict[str, Partition] = {}
    default = ""
    for line in text.splitlines():
        name, limit, gres = line.split("|")
        default = name.rstrip("*") if name.endswith("*") else default
        models = {_model(g) for g in gres.split(",") if g.split(":")[0] == "gpu"}
        before = found[name.rstrip("*")].gpus if name.rstrip("*") in found else frozenset()
        found[name.rstrip("*")] = Partition(_minutes(limit), before | models)
    return found, default


def _model(gres: str) -> str:
    """``gpu:a100:4(S:0-1)`` -> a100; ``gpu:4`` has none."""
    parts = gres.split("(")[0].split(":")
    return parts[1] if len(parts) == 3 else ""


def _minutes(limit: str) -> int | None:
    """``7-00:00:00``, ``2:00``, ``infinite`` -> minutes, rounded down."""
    if limit in ("infinite", "n/a"):
        return None
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = ["0", "0", *clock.split(":")][-3:]
    return int(days or 0) * 1440 + int(hours) * 60 + int(minutes)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command; one that is missing or hangs fails like one that says no."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[0].strip() if lines else "no answer"
