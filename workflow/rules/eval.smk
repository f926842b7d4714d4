# Scores: features of the real sets once, then each run's metrics. Editing a metric re-runs these rules only.
rule reference:
    input:
        needs("reference"),
    output:
        manifest="{root}/references/{dataset}/{split}/manifest.json",
    log:
        "{root}/logs/references/{dataset}/{split}.log",
    benchmark:
        "{root}/benchmarks/references/{dataset}/{split}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("reference"),
    params:
        scale=scale,
        digest=digest("reference"),
    shell:
        "vqbench reference {wildcards.dataset:q} --split {wildcards.split} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"


rule score_tokenizer:
    input:
        needs("tokenizer-scores"),
    output:
        manifest="{root}/scores/tokenizers/{tokenizer}/{dataset}/manifest.json",
    log:
        "{root}/logs/scores/tokenizers/{tokenizer}/{dataset}.log",
    benchmark:
        "{root}/benchmarks/scores/tokenizers/{tokenizer}/{dataset}.tsv"
    group:
        grouped("tokenizer-scores")
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("tokenizer-scores"),
    params:
        scale=scale,
        digest=digest("tokenizer-scores"),
    shell:
        "vqbench score {wildcards.tokenizer:q} --dataset {wildcards.dataset:q} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"


rule score_samples:
    input:
        needs("sample-scores"),
    output:
        manifest="{root}/scores/samples/{samples}/manifest.json",
    log:
        "{root}/logs/scores/samples/{samples}.log",
    benchmark:
        "{root}/benchmarks/scores/samples/{samples}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("sample-scores"),
    params:
        scale=scale,
        digest=digest("sample-scores"),
    shell:
        "vqbench score {wildcards.samples:q} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"


rule score_pairs:
    input:
        needs("pair-scores"),
    output:
        manifest="{root}/scores/pairs/{tokenizer}/{dataset}/{protocol}/manifest.json",
    log:
        "{root}/logs/scores/pairs/{tokenizer}/{dataset}/{protocol}.log",
    benchmark:
        "{root}/benchmarks/scores/pairs/{tokenizer}/{dataset}/{protocol}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("pair-scores"),
    params:
        scale=scale,
        digest=digest("pair-scores"),
    shell:
        "vqbench score-pairs {wildcards.tokenizer:q} --dataset {wildcards.dataset:q} --protocol {wildcards.protocol} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"


rule train_usage:
    input:
        needs("train-usage"),
    output:
        manifest="{root}/scores/usage/{tokenizer}/manifest.json",
    log:
        "{root}/logs/scores/usage/{tokenizer}.log",
    benchmark:
        "{root}/benchmarks/scores/usage/{tokenizer}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("train-usage"),
    params:
        scale=scale,
        digest=digest("train-usage"),
    shell:
        "vqbench usage {wildcards.tokenizer:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"


rule probe:
    input:
        needs("probe"),
    output:
        manifest="{root}/scores/probes/{tokenizer}/manifest.json",
    log:
        "{root}/logs/scores/probes/{tokenizer}.log",
    benchmark:
        "{root}/benchmarks/scores/probes/{tokenizer}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("probe"),
    params:
        scale=scale,
        digest=digest("probe"),
    shell:
        "vqbench probe {wildcards.tokenizer:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"


rule controls:
    input:
        needs("controls"),
    output:
        manifest="{root}/scores/controls/{tokenizer}/manifest.json",
    log:
        "{root}/logs/scores/controls/{tokenizer}.log",
    benchmark:
        "{root}/benchmarks/scores/controls/{tokenizer}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("controls"),
    params:
        scale=scale,
        digest=digest("controls"),
    shell:
        "vqbench controls {wildcards.tokenizer:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"
