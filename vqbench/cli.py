"""``vqbench VERB``: each step of the DAG run by hand, and what helps around it (list, plan, doctor, accept).

Snakemake's rules call these verbs, so a step by hand and a step in the DAG are the same code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vqbench import __version__, cli_scoring
from vqbench.drawn import drawing
from vqbench.errors import Interrupted, SpecError, UserError, nearest
from vqbench.papers import Bench, Key, bench, scales, score_keys

Verb = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. A user's mistake ends with one message and exit status 2, a failed run with 1, one that a signal
    stopped with 75 (its state is kept); no traceback."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except SpecError as error:
        _stop(str(error), 2)
    except Interrupted as error:
        from vqbench.distributed import launched
        from vqbench.notice import queue_again

        print(f"vqbench: {error}", file=sys.stderr, flush=True)
        if not launched():  # else who started the processes does it, once for all
            queue_again()
        sys.exit(os.EX_TEMPFAIL)
    except UserError as error:
        _stop(str(error), 1)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        _stop(f"{error.filename or 'a file'}: {error.strerror or error}", 1)


def _stop(message: str, status: int) -> None:
    print(f"vqbench: {message}", file=sys.stderr)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vqbench", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (_add_reading, _add_steps, _add_products):
        add(verbs)
    cli_scoring.add(verbs, _verb)
    return parser


def _verb(verbs: argparse._SubParsersAction, name: str, run: Verb, text: str, example: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text, epilog=f"example:\n  vqbench {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def _scaled(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--scale", default="paper", help=f"one of {', '.join(scales())} (default: paper)")
    return parser


# ---- verbs that read ---------------------------------------------------------------------------------------------


def _add_reading(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    listing = _verb(
        verbs, "list", _list, "What can be run: papers, runs, tables, figures.", "list tokenizers --scale demo"
    )
    listing.add_argument(
        "what",
        nargs="?",
        default="all",
        help="all (default), codebooks, tokenizers, generators, samples, classifiers, tables, figures",
    )
    _scaled(listing)
    plan = _verb(verbs, "plan", _plan, "The runs that a target needs, what is done, and what the rest costs.",
                 "plan results/table2.csv")  # fmt: skip
    plan.add_argument("target", help="a table's or figure's path, a paper, or a run's id")
    plan.add_argument("--tflops", type=float, default=150.0, help="sustained TFLOP/s of a GPU in bf16 (assumed: 150)")
    plan.add_argument("--tflops-fp32", type=float, default=15.0, help="the same in fp32 without TF32 (assumed: 15)")
    _scaled(plan)
    counted = _verb(verbs, "estimate", _estimate, "Count every run's operations, once, for the run times that jobs ask for.",
                    "estimate --scale demo")  # fmt: skip
    counted.add_argument("--out", type=Path, help="default: estimates.json below the scale's results; what vqbench ships "
                         "is workflow/estimates/paper.json")  # fmt: skip
    _scaled(counted)
    doctor = _verb(
        verbs, "doctor", _doctor, "What this machine lacks for a target, with the mend.", "doctor results/table2.csv"
    )
    doctor.add_argument("target", nargs="?", help="a table's or figure's path, a paper, or a run's id")
    doctor.add_argument("--dataset", help="decode every image of one data set and name what is broken")
    doctor.add_argument(
        "--profile", choices=["slurm"], default="", help="look at the cluster instead of this machine's GPU"
    )
    _scaled(doctor)


def _list(args: argparse.Namespace) -> None:
    from vqbench.plan import listing

    print(listing(bench(args.scale), args.what))


def _plan(args: argparse.Namespace) -> None:
    from vqbench.plan import plan

    found, keys = _target(args)
    print(plan(found, keys, Path.cwd(), args.tflops, args.tflops_fp32))


def _estimate(args: argparse.Namespace) -> None:
    from vqbench.plan import record

    print(record(bench(args.scale), args.out))


def _target(args: argparse.Namespace) -> tuple[Bench, list[Key]]:
    from vqbench.plan import target_keys

    return target_keys(args.target, args.scale)


def _doctor(args: argparse.Namespace) -> None:
    from vqbench.doctor import examine, examine_dataset

    if not args.target and not args.dataset and not args.profile:
        raise SpecError("doctor needs a target (e.g. results/table2.csv), --dataset NAME or --profile slurm")
    if args.dataset:
        print(examine_dataset(bench(args.scale), args.dataset))
    if args.target or args.profile:
        found, keys = _target(args) if args.target else (bench(args.scale), score_keys(bench(args.scale)))
        report, healthy = examine(found, keys, Path.cwd(), args.profile)
        print(report)
        if not healthy:
            sys.exit(1)


# ---- verbs that do one step ----------------------------------------------------------------------------------------


def _add_steps(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    steps = [
        ("check-dataset", "dataset", "dataset", "Decode a data set once and write its index.", "check-dataset photos --scale demo"),
        ("pretrained", "pretrained", "network", "Check real weights, or train the embedded network.",
         "pretrained photo-classifier --scale demo"),
        ("codebook", "codebook", "codebook", "Make a codebook from a teacher's features.", "codebook NAME --scale demo"),
        ("train-tokenizer", "tokenizer", "tokenizer", "Train a tokenizer.", "train-tokenizer cq-k16384 --scale demo"),
        ("train-generator", "generator", "generator", "Train a generator on a tokenizer's tokens.",
         "train-generator cq-b-k16384 --scale demo"),
        ("train-classifier", "classifier", "classifier", "Train a classifier on a tokenizer's tokens.",
         "train-classifier lc-k100000-vit --scale demo"),
        ("sample", "samples", "samples", "Sample images from a generator.", "sample cq-b-k16384-s10 --scale demo"),
        ("usage", "train-usage", "tokenizer", "Codes that all training images use.", "usage cq-k16384 --scale demo"),
        ("probe", "probe", "tokenizer", "Linear probing of a frozen tokenizer.", "probe cq-k16384 --scale demo"),
        ("controls", "controls", "tokenizer", "Score controls: real, identity, random codes.", "controls cq-k16384 --scale demo"),
    ]  # fmt: skip
    for verb, kind, name, text, example in steps:
        _step(verbs, verb, text, example, name, partial(_named, kind))
    given = _step(verbs, "features", "Write a teacher's patch features of a training split.",
                  "features clip-vitl14 --dataset photos --scale demo", "teacher",
                  lambda a: ("features", f"{a.name}/{a.dataset}"))  # fmt: skip
    given.add_argument("--dataset", required=True, help="data set")
    for verb, kind, text in (("tokenize", "tokens", "ids"), ("encode", "latents", "latents")):
        what, example = f"Write a tokenizer's {text} of one split.", f"{verb} cq-k16384 --split train --scale demo"
        encode = _step(verbs, verb, what, example, "tokenizer", partial(_encoded, kind), dataset=True)
        encode.add_argument("--split", choices=["train", "validation"], default="train")
    _step(verbs, "reconstruct", "Decode a tokenizer's ids of the validation images.", "reconstruct cq-k16384 --scale demo",
          "tokenizer", lambda a: ("reconstruction", f"{a.name}/{_dataset(a)}"), dataset=True)  # fmt: skip
    _step(verbs, "score", "Score a tokenizer's reconstructions, a sample set or a classifier.", "score cq-k16384 --scale demo",
          "run", _scored, dataset=True)  # fmt: skip
    pairs = _step(verbs, "score-pairs", "Score a tokenizer's reconstructions under another protocol's PSNR and SSIM.",
                  "score-pairs cq-k16384 --protocol vqgan-lc-code --scale demo", "tokenizer",
                  lambda a: ("pair-scores", f"{a.name}/{_dataset(a)}/{a.protocol}"), dataset=True)  # fmt: skip
    pairs.add_argument("--protocol", required=True, help="a shipped protocol's name")
    real = _step(verbs, "reference", "The judge's features of a real split.", "reference photos --split train --scale demo",
                 "dataset", lambda a: ("reference", f"{a.name}/{a.split}"))  # fmt: skip
    real.add_argument("--split", choices=["train", "validation", "train+validation"], default="validation")


def _encoded(kind: str, args: argparse.Namespace) -> Key:
    return kind, f"{args.name}/{_dataset(args)}/{args.split}"


def _named(kind: str, args: argparse.Namespace) -> Key:
    return kind, args.name


def _expecting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--expect", help="digest at submission; the job refuses to run under another one")


def _step(verbs: argparse._SubParsersAction, verb: str, text: str, example: str, name: str,  # type: ignore[type-arg]
          key: Callable[[argparse.Namespace], Key], dataset: bool = False) -> argparse.ArgumentParser:  # fmt: skip
    parser = _scaled(_verb(verbs, verb, lambda args: _run_step(args, key), text, example))
    parser.add_argument("name", metavar=name.upper(), help=f"the {name}'s id")
    _expecting(parser)
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="on each node, with a GPU each where there are any; 0 is 1 (default: 1)",
    )
    parser.add_argument("--nodes", type=int, default=1, help="of the Slurm job that share the step (default: 1)")
    if dataset:
        parser.add_argument("--dataset", help="data set (default: the tokenizer's own)")
    return parser


def _run_step(args: argparse.Namespace, key: Callable[[argparse.Namespace], Key]) -> None:
    from vqbench.distributed import launched, rank
    from vqbench.graph import SHARED
    from vqbench.launcher import launch
    from vqbench.notice import end_with_caller
    from vqbench.steps import run_step

    kind, name = key(args)
    processes = max(1, args.processes)
    if processes * args.nodes > 1 and kind not in SHARED:
        raise SpecError(f"{args.verb} runs in one process; leave out --processes and --nodes")
    if processes * args.nodes > 1 and not launched():
        sys.exit(launch(processes, args.nodes))
    end_with_caller()
    done = run_step(kind, name, args.scale, args.expect)
    if rank() == 0:
        print(done)


def _dataset(args: argparse.Namespace) -> str:
    found = bench(args.scale)
    if args.name not in found.tokenizers:
        raise SpecError(f"unknown tokenizer '{args.name}'; {nearest(args.name, found.tokenizers)}")
    return str(args.dataset or found.tokenizers[args.name].dataset)


def _scored(args: argparse.Namespace) -> Key:
    found = bench(args.scale)
    if args.name in found.samples:
        return "sample-scores", args.name
    if args.name in found.classifiers:
        return "classifier-scores", args.name
    if args.name not in found.tokenizers:
        known = [*found.samples, *found.tokenizers, *found.classifiers]
        raise SpecError(f"no sample set, tokenizer or classifier '{args.name}'; {nearest(args.name, known)}")
    return "tokenizer-scores", f"{args.name}/{_dataset(args)}"


# ---- verbs that write what people read --------------------------------------------------------------------------------


def _add_products(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    table = _verb(verbs, "table", _table, "Write a table as CSV, Markdown and LaTeX.", "table cq/6b --scale demo")
    table.add_argument("name", metavar="PAPER/TABLE")
    figure = _verb(verbs, "figure", _figure, "Draw a figure as PDF and PNG.", "figure cq/fig1 --scale demo")
    figure.add_argument("name", metavar="PAPER/FIGURE")
    scores = _verb(verbs, "scores", _scores, "Write scores.csv: every run x every metric.", "scores --scale demo")
    settle = _verb(verbs, "settle", _settle, "Replace tables that are no longer backed by finished runs by partial ones.",
                   "settle --scale demo")  # fmt: skip
    settle.add_argument("--write", action="store_true", help="also write every table that can be written in full")
    accept = _verb(verbs, "accept", _accept, "Record that a finished run stays valid under changed code or spec.",
                   "accept tokenizer/cq-k16384 --scale demo --reason 'renamed a variable'")  # fmt: skip
    accept.add_argument("name", metavar="KIND/NAME")
    accept.add_argument("--reason", required=True, help="why the change cannot reach its numbers; shown in tables")
    for parser in (table, figure, scores, settle, accept):
        _scaled(parser)
    for parser in (table, figure, scores):
        _expecting(parser)
    fetch = _verb(verbs, "fetch-weights", _fetch, "Download pretrained weights and check their digest.",
                  "fetch-weights inception-2015-12-05")  # fmt: skip
    fetch.add_argument("name", metavar="NETWORK")


def _table(args: argparse.Namespace) -> None:
    from vqbench.eval.tables import write_table

    found = bench(args.scale)
    table = found.table(args.name)
    with drawing(found, f"table {args.name}", found.table_path(table), found.table_digest(table), args.expect):
        write_table(found, table, Path.cwd())


def _figure(args: argparse.Namespace) -> None:
    from vqbench.eval.figures import draw

    found = bench(args.scale)
    figure = found.figure(args.name)
    with drawing(found, f"figure {args.name}", found.figure_path(figure), found.figure_digest(args.name), args.expect):
        draw(found, figure, Path.cwd())


def _scores(args: argparse.Namespace) -> None:
    from vqbench.eval.scoreboard import scores_path, write_scores

    found = bench(args.scale)
    with drawing(found, "scores.csv", scores_path(found), found.scores_digest(), args.expect):
        write_scores(found, Path.cwd(), score_keys(found))


def _settle(args: argparse.Namespace) -> None:
    from vqbench.eval.scoreboard import scores_path, write_scores
    from vqbench.eval.tables import check_tables, write_table

    found, base = bench(args.scale), Path.cwd()
    check_tables(found, base)
    for table in found.tables.values() if args.write else ():
        if all(found.is_current(k, base) for k in found.table_keys(table)):
            write_table(found, table, base)
    if not all(found.is_current(k, base) for k in score_keys(found)):
        (base / scores_path(found)).unlink(missing_ok=True)  # as with tables: never half old, half new
    elif args.write:
        write_scores(found, base, score_keys(found))


def _accept(args: argparse.Namespace) -> None:
    from vqbench.steps import accept

    kind, _, name = args.name.partition("/")
    print(accept((kind, name), args.scale, args.reason))


def _fetch(args: argparse.Namespace) -> None:
    from vqbench.weights import fetch

    print(fetch(bench("paper"), args.name))


if __name__ == "__main__":
    main()
