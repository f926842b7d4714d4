# vqbench: re-runs the papers on discrete image tokenizers. The DAG is data: workflow/papers, recipes, scales.
# A file target's own path decides its scale (results/demo/... is demo); `config["scale"]`, set by the profile,
# only resolves names such as `cq`, `figures`, `eval_only` or a run's id.
from snakemake.utils import min_version, validate

min_version("9.0")


configfile: "workflow/config.yaml"


validate(config, "workflow/schemas/config.schema.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/groups.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/codebooks.smk"
include: "workflow/rules/tokenizers.smk"
include: "workflow/rules/generators.smk"
include: "workflow/rules/classifiers.smk"
include: "workflow/rules/eval.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/targets.smk"


rule all:
    default_target: True
    input:
        everything(),
    localrule: True


onstart:
    note_plan()


onerror:
    settle_tables()
