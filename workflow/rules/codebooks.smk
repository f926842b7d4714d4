# Codebooks that are made before any tokenizer trains: a teacher's features once a data set, codebooks from them.
rule features:
    input:
        needs("features"),
    output:
        manifest="{root}/features/{teacher}/{dataset}/manifest.json",
    log:
        "{root}/logs/features/{teacher}/{dataset}.log",
    benchmark:
        "{root}/benchmarks/features/{teacher}/{dataset}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("features"),
    params:
        scale=scale,
        digest=digest("features"),
    shell:
        "vqbench features {wildcards.teacher:q} --dataset {wildcards.dataset:q} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"


rule codebook:
    input:
        needs("codebook"),
    output:
        manifest="{root}/codebooks/{codebook}/manifest.json",
    log:
        "{root}/logs/codebooks/{codebook}.log",
    benchmark:
        "{root}/benchmarks/codebooks/{codebook}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("codebook"),
    params:
        scale=scale,
        digest=digest("codebook"),
    shell:
        "vqbench codebook {wildcards.codebook:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"
