# Generators: train one on tokens, sample from it in fixed blocks of image indices.
rule train_generator:
    input:
        needs("generator"),
    output:
        manifest="{root}/generators/{generator}/manifest.json",
    log:
        "{root}/logs/generators/{generator}.log",
    benchmark:
        "{root}/benchmarks/generators/{generator}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("generator"),
    params:
        scale=scale,
        digest=digest("generator"),
    shell:
        "vqbench train-generator {wildcards.generator:q} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"


rule sample:
    input:
        needs("samples"),
    output:
        manifest="{root}/samples/{samples}/manifest.json",
    log:
        "{root}/logs/samples/{samples}.log",
    benchmark:
        "{root}/benchmarks/samples/{samples}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("samples"),
    params:
        scale=scale,
        digest=digest("samples"),
    shell:
        "vqbench sample {wildcards.samples:q} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"
