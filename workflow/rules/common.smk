# The resolved papers, and how the rules ask them for inputs, digests and resources.
import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

from snakemake.io import IOFile
from snakemake.settings.types import RerunTrigger

from vqbench.changes import note
from vqbench.cluster import ASKED, asks, small
from vqbench.drawn import is_drawn_from
from vqbench.errors import UserError
from vqbench.eval.figure_inputs import ABOUT, figure_keys
from vqbench.papers import FIRST_PAPER, bench, scale_of, scale_root, scales, score_keys

# `vqbench` in a shell command is the one beside the Python that reads this, activated or not. A prefix and no parameter:
# the path of an environment must not re-run anything. $PPID is the Snakemake that runs the job: with it the job ends.
shell.prefix(
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH VQBENCH_CALLER=$PPID; set -euo pipefail; "
)


def user_errors(function):
    """Print a user's mistake in one line instead of a traceback."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except UserError as error:
            print(f"vqbench: {error}", file=sys.stderr)
            raise SystemExit(1) from None

    return wrapped


# The scale that plain names stand for.
NAMED = user_errors(bench)(config["scale"])


wildcard_constraints:
    root="|".join(re.escape(scale_root(s)) for s in scales()),
    paper="|".join(re.escape(p) for p in NAMED.papers),
    table="[0-9]+[a-z]*",
    figure="[a-z0-9-]+",
    teacher="[^/]+",
    codebook="[^/]+",
    tokenizer="[^/]+",
    generator="[^/]+",
    classifier="[^/]+",
    samples="[^/]+",
    dataset="[^/]+",
    pretrained="[^/]+",
    split=r"train|validation|train\+validation",
    protocol="[a-z0-9-]+",


# Wildcards in the order in which a kind's name is written: at most a few of them are a rule's.
WILDCARDS = (
    "pretrained",
    "teacher",
    "codebook",
    "tokenizer",
    "samples",
    "generator",
    "classifier",
    "dataset",
    "split",
    "protocol",
)

# Scales that this DAG has jobs of.
IN_USE = set()


@user_errors
def bench_of(root):
    """The resolved papers of the scale whose results lie under `root`."""
    scale = scale_of(f"{root}/x")
    IN_USE.add(scale)
    return bench(scale)


@user_errors
def key_of(kind, wc):
    """(kind, name) from a job's wildcards, in the order in which the kind's name is written."""
    parts = [getattr(wc, w) for w in WILDCARDS if hasattr(wc, w)]
    return kind, "/".join(parts)


def needs(kind):
    """Input function: manifests of all that a step reads."""

    @user_errors
    def manifests(wc):
        found, key = bench_of(wc.root), key_of(kind, wc)
        force_if_stale(found, key)
        return [found.manifest(k) for k in found.step(key).upstream]

    return manifests


def planning():
    """Whether this process plans, and by digests (params): `--rerun-triggers mtime` asks for times alone."""
    settings = workflow.dag_settings
    return (
        workflow.is_main_process
        and settings is not None
        and RerunTrigger.PARAMS in settings.rerun_triggers
    )


def force_if_stale(found, key):
    """Make a result of another spec or code again even where Snakemake has no record to compare digests with (a deleted
    .snakemake, copied results) and would go by times alone."""
    output = found.manifest(key)
    if Path(output).is_file() and not found.is_current(key, Path.cwd()):
        force_unrecorded(output)


def force_if_drawn_otherwise(found, output, digest):
    """The same of a table, a figure or scores.csv."""
    if Path(output).is_file() and not is_drawn_from(found, output, digest):
        force_unrecorded(output)


def force_unrecorded(output):
    if planning() and workflow.persistence.metadata(IOFile(output)) is None:
        workflow.dag.forcefiles.add(output)


def digest(kind):
    """Params function: spec and code of a step; a change re-runs it, a touched file or an edited comment does not."""
    return user_errors(lambda wc: bench_of(wc.root).digest(key_of(kind, wc)))


def scale(wc):
    return bench_of(wc.root).scale


def asked(kind):
    """A rule's resources: what a job of this kind asks for, at its scale and on the user's cluster."""

    def amount(what):
        return user_errors(
            lambda wc, attempt: asks(bench_of(wc.root), key_of(kind, wc), attempt)[what]
        )

    return {what: amount(what) for what in ASKED}


# What a job that only writes tables or draws asks for.
drawn = user_errors(small)


def threads_of(wc):
    return bench_of(wc.root).overlay.threads


def note_plan():
    """What the jobs' digests stand for, so that one that refuses can say what was edited while it waited."""
    for name in IN_USE:
        try:
            note(bench(name), Path.cwd())
        except (
            UserError
        ) as error:  # it only serves that message; where a job cannot write either, it says so
            print(f"vqbench: {error}", file=sys.stderr)


def settle_tables():
    """After a failure: a table that is no longer backed by finished runs becomes a partial one that says why."""
    for name in scales():
        if Path(scale_root(name)).is_dir():
            subprocess.run(
                [sys.executable, "-m", "vqbench.cli", "settle", "--scale", name],
                check=False,
            )


def table_name(wc):
    """<paper>/<id>; the first paper's tables lie at the root, and so does a table that bears its paper's name."""
    paper = getattr(wc, "paper", FIRST_PAPER)
    return f"{paper}/{getattr(wc, 'table', paper)}"


@user_errors
def table_of(wc):
    return bench_of(wc.root).table(table_name(wc))


@user_errors
def table_inputs(wc):
    found, table = bench_of(wc.root), table_of(wc)
    force_if_drawn_otherwise(found, found.table_path(table), found.table_digest(table))
    return [found.manifest(k) for k in found.table_keys(table)]


@user_errors
def figure_inputs(wc):
    found, name = bench_of(wc.root), f"{wc.paper}/{wc.figure}"
    figure = found.figure(name)
    force_if_drawn_otherwise(
        found, found.figure_path(figure), found.figure_digest(name)
    )
    return [found.manifest(k) for k in figure_keys(found, figure)]


@user_errors
def figure_about(wc):
    """What the report says of a figure: its title, and how its kind is read."""
    figure = bench_of(wc.root).figure(f"{wc.paper}/{wc.figure}")
    return f"{figure.title}. {ABOUT.get(figure.kind, '')}".strip()


@user_errors
def scores_inputs(wc):
    found = bench_of(wc.root)
    force_if_drawn_otherwise(found, f"{found.root}/scores.csv", found.scores_digest())
    return [found.manifest(k) for k in score_keys(found)]


def tables_of(paper=None, ablation=False):
    found = [
        t
        for t in NAMED.tables.values()
        if paper in (None, t.paper) and (t.ablation or not ablation)
    ]
    return [NAMED.table_path(t) for t in found]


def figures_of(paper=None):
    found = [f for f in NAMED.figures.values() if paper in (None, f.paper)]
    return [NAMED.figure_path(f) for f in found]


def everything():
    """All tables, figures and scores of the scale; for `--report`, those that exist."""
    wanted = [*tables_of(), *figures_of(), f"{NAMED.root}/scores.csv"]
    return [p for p in wanted if Path(p).exists()] if "--report" in sys.argv else wanted


def current_scores(wc):
    """Scores that can be made from finished, current runs without training anything; names the others."""
    ready, missing = NAMED.scorable(score_keys(NAMED), Path.cwd())
    for key, reason in missing.items():
        print(
            f"vqbench: eval_only leaves out {'/'.join(key)}: {reason}", file=sys.stderr
        )
    return [NAMED.manifest(k) for k in ready]
