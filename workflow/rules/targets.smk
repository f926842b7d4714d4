# Names that are not files: papers (tables and figures), runs by their id, figures, ablations, eval_only. All at `config["scale"]`.
for name in NAMED.papers:

    rule:
        name:
            name
        input:
            tables_of(name),
            figures_of(name),
        localrule: True


for kind, runs in (
    ("codebook", NAMED.codebooks),
    ("tokenizer", NAMED.tokenizers),
    ("generator", NAMED.generators),
    ("samples", NAMED.samples),
    ("classifier", NAMED.classifiers),
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
    conda:
        "../../environment.yml"
    params:
        scale=NAMED.scale,
    shell:
        "vqbench settle --scale {params.scale:q} --write 2> {log:q}"
