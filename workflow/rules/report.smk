# Tables and figures, with what the report says about them.
PRINTED = "workflow/papers/reported.csv"


def table_of(wc):
    found = bench_of(wc.root)
    return found.tables[f"{getattr(wc, 'paper', 'cq')}/{wc.table}"]


def table_inputs(wc):
    found = bench_of(wc.root)
    return [found.manifest(k) for k in found.table_keys(table_of(wc))]


def figure_inputs(wc):
    found = bench_of(wc.root)
    return [
        found.manifest(k)
        for k in figure_keys(found, found.figures[f"{wc.paper}/{wc.figure}"])
    ]


def scores_inputs(wc):
    found = bench_of(wc.root)
    return [found.manifest(k) for k in score_keys(found)]


rule table:
    input:
        scores=table_inputs,
        printed=PRINTED,
    output:
        csv=report(
            "{root}/table{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"paper": "cq", "table": "{table}", "format": "CSV"},
        ),
        md="{root}/table{table}.md",
        tex="{root}/table{table}.tex",
    log:
        "{root}/logs/tables/cq-{table}.log",
    benchmark:
        "{root}/benchmarks/tables/cq-{table}.tsv"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        scale=scale,
        digest=lambda wc: bench_of(wc.root).table_digest(table_of(wc)),
    shell:
        "{VQBENCH} table cq/{wildcards.table} --scale {params.scale} 2> {log:q}"


use rule table as paper_table with:
    output:
        csv=report(
            "{root}/{paper}/table{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"paper": "{paper}", "table": "{table}", "format": "CSV"},
        ),
        md="{root}/{paper}/table{table}.md",
        tex="{root}/{paper}/table{table}.tex",
    log:
        "{root}/logs/tables/{paper}-{table}.log",
    benchmark:
        "{root}/benchmarks/tables/{paper}-{table}.tsv"


rule figure:
    input:
        figure_inputs,
    output:
        pdf="{root}/{paper}/figures/{figure}.pdf",
        png=report(
            "{root}/{paper}/figures/{figure}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"paper": "{paper}", "figure": "{figure}"},
        ),
    log:
        "{root}/logs/figures/{paper}-{figure}.log",
    benchmark:
        "{root}/benchmarks/figures/{paper}-{figure}.tsv"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        scale=scale,
        digest=lambda wc: bench_of(wc.root).figure_digest(f"{wc.paper}/{wc.figure}"),
    shell:
        "{VQBENCH} figure {wildcards.paper}/{wildcards.figure} --scale {params.scale} 2> {log:q}"


rule scores:
    input:
        scores_inputs,
    output:
        csv=report(
            "{root}/scores.csv",
            caption="../report/scores.rst",
            category="Scores",
            labels={
                "paper": "all",
                "table": "every run x every metric",
                "format": "CSV",
            },
        ),
    log:
        "{root}/logs/tables/scores.log",
    benchmark:
        "{root}/benchmarks/tables/scores.tsv"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        scale=scale,
        digest=lambda wc: bench_of(wc.root).scores_digest(),
    shell:
        "{VQBENCH} scores --scale {params.scale} 2> {log:q}"
