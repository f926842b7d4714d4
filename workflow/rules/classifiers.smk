# Token classifiers: train one on a frozen tokenizer's ids, score it on those of the validation images.
rule train_classifier:
    input:
        needs("classifier"),
    output:
        manifest="{root}/classifiers/{classifier}/manifest.json",
    log:
        "{root}/logs/classifiers/{classifier}.log",
    benchmark:
        "{root}/benchmarks/classifiers/{classifier}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("classifier"),
    params:
        scale=scale,
        digest=digest("classifier"),
    shell:
        "vqbench train-classifier {wildcards.classifier:q} --scale {params.scale:q} --expect {params.digest} --processes {resources.gpu} 2> {log:q}"


rule score_classifier:
    input:
        needs("classifier-scores"),
    output:
        manifest="{root}/scores/classifiers/{classifier}/manifest.json",
    log:
        "{root}/logs/scores/classifiers/{classifier}.log",
    benchmark:
        "{root}/benchmarks/scores/classifiers/{classifier}.tsv"
    conda:
        "../../environment.yml"
    threads: threads_of
    resources:
        **asked("classifier-scores"),
    params:
        scale=scale,
        digest=digest("classifier-scores"),
    shell:
        "vqbench score {wildcards.classifier:q} --scale {params.scale:q} --expect {params.digest} 2> {log:q}"
