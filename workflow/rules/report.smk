# Tables and figures, with what the report says about them.
PRINTED = "workflow/papers/reported.csv"


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
    conda:
        "../../environment.yml"
    resources:
        **drawn(),
    params:
        scale=scale,
        name=table_name,
        digest=lambda wc: bench_of(wc.root).table_digest(table_of(wc)),
    shell:
        "vqbench table {params.name:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"


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


use rule table as own_table with:
    output:
        csv=report(
            "{root}/{paper}.csv",
            caption="../report/own_table.rst",
            category="Tables",
            labels={"paper": "{paper}", "table": "all", "format": "CSV"},
        ),
        md="{root}/{paper}.md",
        tex="{root}/{paper}.tex",
    log:
        "{root}/logs/tables/{paper}.log",
    benchmark:
        "{root}/benchmarks/tables/{paper}.tsv"


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
    conda:
        "../../environment.yml"
    resources:
        **drawn(mem_mb=4000, runtime=120),
    params:
        scale=scale,
        digest=lambda wc: bench_of(wc.root).figure_digest(f"{wc.paper}/{wc.figure}"),
        about=figure_about,
    shell:
        "vqbench figure {wildcards.paper}/{wildcards.figure} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"


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
    conda:
        "../../environment.yml"
    resources:
        **drawn(),
    params:
        scale=scale,
        digest=lambda wc: bench_of(wc.root).scores_digest(),
    shell:
        "vqbench scores --scale {params.scale:q} --expect {params.digest} 2> {log:q}"
