# Names that are not files: papers, runs by their id, figures, ablations, eval_only. All at `config["scale"]`.
NAMED = bench_of(
    scale_root(config["scale"]) if config["scale"] in scales() else config["scale"]
)


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


for name in NAMED.papers:

    rule:
        name:
            name
        input:
            tables_of(name),
            figures_of(name),
            f"{NAMED.root}/scores.csv",
        localrule: True


for kind, runs in (
    ("tokenizer", NAMED.tokenizers),
    ("generator", NAMED.generators),
    ("samples", NAMED.samples),
):
    for run_id in runs:

        rule:
            name:
                run_id
            input:
                NAMED.manifest((kind, run_id)),
                [NAMED.manifest(k) for k in NAMED.own_scores(kind, run_id)],
            localrule: True


rule figures:
    input:
        figures_of(),
    localrule: True


rule ablations:
    input:
        tables_of(ablation=True),
    localrule: True


rule eval_only:
    input:
        current_scores,
    log:
        f"{NAMED.root}/logs/eval_only.log",
    localrule: True
    params:
        command=f"{VQBENCH} settle --scale {NAMED.scale} --write",
    shell:
        "{params.command} 2> {log:q}"
