# Data sets are checked before anything trains on them; pretrained networks are checked, or trained where embedded.
rule check_dataset:
    input:
        needs("dataset"),
    output:
        manifest="{root}/datasets/{dataset}/manifest.json",
    log:
        "{root}/logs/datasets/{dataset}.log",
    benchmark:
        "{root}/benchmarks/datasets/{dataset}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("dataset"),
    params:
        scale=scale,
        digest=digest("dataset"),
    shell:
        "vqbench check-dataset {wildcards.dataset:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"


rule pretrained:
    input:
        needs("pretrained"),
    output:
        manifest="{root}/pretrained/{pretrained}/manifest.json",
    log:
        "{root}/logs/pretrained/{pretrained}.log",
    benchmark:
        "{root}/benchmarks/pretrained/{pretrained}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("pretrained"),
    params:
        scale=scale,
        digest=digest("pretrained"),
    shell:
        "vqbench pretrained {wildcards.pretrained:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"
