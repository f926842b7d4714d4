# Tokenizers: train one, write its ids once, decode its validation ids.
rule train_tokenizer:
    input:
        needs("tokenizer"),
    output:
        manifest="{root}/tokenizers/{tokenizer}/manifest.json",
    log:
        "{root}/logs/tokenizers/{tokenizer}.log",
    benchmark:
        "{root}/benchmarks/tokenizers/{tokenizer}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("tokenizer"),
    params:
        scale=scale,
        digest=digest("tokenizer"),
    shell:
        "vqbench train-tokenizer {wildcards.tokenizer:q} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"


rule tokenize:
    input:
        needs("tokens"),
    output:
        manifest="{root}/tokens/{tokenizer}/{dataset}/{split}/manifest.json",
    log:
        "{root}/logs/tokens/{tokenizer}/{dataset}/{split}.log",
    benchmark:
        "{root}/benchmarks/tokens/{tokenizer}/{dataset}/{split}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("tokens"),
    params:
        scale=scale,
        digest=digest("tokens"),
    shell:
        "vqbench tokenize {wildcards.tokenizer:q} --dataset {wildcards.dataset:q} --split {wildcards.split} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"


rule encode:
    input:
        needs("latents"),
    output:
        manifest="{root}/latents/{tokenizer}/{dataset}/{split}/manifest.json",
    log:
        "{root}/logs/latents/{tokenizer}/{dataset}/{split}.log",
    benchmark:
        "{root}/benchmarks/latents/{tokenizer}/{dataset}/{split}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("latents"),
    params:
        scale=scale,
        digest=digest("latents"),
    shell:
        "vqbench encode {wildcards.tokenizer:q} --dataset {wildcards.dataset:q} --split {wildcards.split} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"


rule reconstruct:
    input:
        needs("reconstruction"),
    output:
        manifest="{root}/reconstructions/{tokenizer}/{dataset}/manifest.json",
    log:
        "{root}/logs/reconstructions/{tokenizer}/{dataset}.log",
    benchmark:
        "{root}/benchmarks/reconstructions/{tokenizer}/{dataset}.tsv"
    group:
        grouped("reconstruction")
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("reconstruction"),
    params:
        scale=scale,
        digest=digest("reconstruction"),
    shell:
        "vqbench reconstruct {wildcards.tokenizer:q} --dataset {wildcards.dataset:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"
