# Scores: features of the real sets once, then each run's metrics. Editing a metric re-runs these rules only.
rule reference:
    output:
        manifest="{root}/references/{dataset}/{split}/manifest.json",
    input:
        needs("reference"),
    params:
        scale=scale,
        digest=digest("reference"),
    log:
        "{root}/logs/references/{dataset}/{split}.log",
    benchmark:
        "{root}/benchmarks/references/{dataset}/{split}.tsv"
    threads: threads_of
    resources:
        mem_mb=asks("reference", "mem_mb"),
        runtime=asks("reference", "runtime"),
        gpu=asks("reference", "gpu"),
    shell:
        "{VQBENCH} reference {wildcards.dataset:q} --split {wildcards.split} --scale {params.scale} --expect {params.digest} 2> {log:q}"


rule score_tokenizer:
    output:
        manifest="{root}/scores/tokenizers/{tokenizer}/{dataset}/manifest.json",
    input:
        needs("tokenizer-scores"),
    params:
        scale=scale,
        digest=digest("tokenizer-scores"),
    log:
        "{root}/logs/scores/tokenizers/{tokenizer}/{dataset}.log",
    benchmark:
        "{root}/benchmarks/scores/tokenizers/{tokenizer}/{dataset}.tsv"
    threads: threads_of
    resources:
        mem_mb=asks("tokenizer-scores", "mem_mb"),
        runtime=asks("tokenizer-scores", "runtime"),
        gpu=asks("tokenizer-scores", "gpu"),
    shell:
        "{VQBENCH} evaluate {wildcards.tokenizer:q} --dataset {wildcards.dataset:q} --scale {params.scale} --expect {params.digest} 2> {log:q}"


rule score_samples:
    output:
        manifest="{root}/scores/samples/{samples}/manifest.json",
    input:
        needs("sample-scores"),
    params:
        scale=scale,
        digest=digest("sample-scores"),
    log:
        "{root}/logs/scores/samples/{samples}.log",
    benchmark:
        "{root}/benchmarks/scores/samples/{samples}.tsv"
    threads: threads_of
    resources:
        mem_mb=asks("sample-scores", "mem_mb"),
        runtime=asks("sample-scores", "runtime"),
        gpu=asks("sample-scores", "gpu"),
    shell:
        "{VQBENCH} evaluate {wildcards.samples:q} --scale {params.scale} --expect {params.digest} 2> {log:q}"


rule probe:
    output:
        manifest="{root}/scores/probes/{tokenizer}/manifest.json",
    input:
        needs("probe"),
    params:
        scale=scale,
        digest=digest("probe"),
    log:
        "{root}/logs/scores/probes/{tokenizer}.log",
    benchmark:
        "{root}/benchmarks/scores/probes/{tokenizer}.tsv"
    threads: threads_of
    resources:
        mem_mb=asks("probe", "mem_mb"),
        runtime=asks("probe", "runtime"),
        gpu=asks("probe", "gpu"),
    shell:
        "{VQBENCH} probe {wildcards.tokenizer:q} --scale {params.scale} --expect {params.digest} 2> {log:q}"


rule controls:
    output:
        manifest="{root}/scores/controls/{tokenizer}/manifest.json",
    input:
        needs("controls"),
    params:
        scale=scale,
        digest=digest("controls"),
    log:
        "{root}/logs/scores/controls/{tokenizer}.log",
    benchmark:
        "{root}/benchmarks/scores/controls/{tokenizer}.tsv"
    threads: threads_of
    resources:
        mem_mb=asks("controls", "mem_mb"),
        runtime=asks("controls", "runtime"),
        gpu=asks("controls", "gpu"),
    shell:
        "{VQBENCH} controls {wildcards.tokenizer:q} --scale {params.scale} --expect {params.digest} 2> {log:q}"
