# make demo: the demo tables, figures and report. make test: the whole test suite. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One OpenMP thread a process: two jobs run at once on two cores. Hash seeds do not reach any number.
export OMP_NUM_THREADS ?= 1
DEMO := results/demo
DEMO_TABLES := $(DEMO)/table2.csv $(DEMO)/table6a.csv $(DEMO)/table6b.csv
DEMO_FIGURES := $(foreach f,fig1 fig3 fig4 reconstructions losses,$(DEMO)/cq/figures/$(f).pdf)

.PHONY: setup demo demo-whole test test-full test-demo test-whole test-slurm test-faults benchmark lint format clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: setup
	$(BIN)/snakemake --profile demo $(DEMO_TABLES) $(DEMO_FIGURES)
	$(BIN)/snakemake --profile demo --quiet all --report $(DEMO)/report.zip $(DEMO_TABLES) $(DEMO_FIGURES)
	@printf '\nTables, printed beside measured:\n'; ls $(DEMO_TABLES) $(DEMO_TABLES:.csv=.md)
	@printf 'Figures:\n'; ls $(DEMO_FIGURES)
	@printf 'Report (unzip, open report.html):\n%s\n\n' $(DEMO)/report.zip
	@cat $(DEMO)/table6b.md

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not full and not demo and not whole and not slurm"

# Full-size models, one optimizer step each, and the real judges' architectures on random weights.
test-full: setup
	$(BIN)/python -m pytest -m full

# What `make demo` learned: reads results/demo.
test-demo: setup
	$(BIN)/python -m pytest -m demo

# The second paper and the matrix at demo scale, and what they must hold: half an hour on a fifth-generation AMD EPYC, an
# hour on an Intel Xeon, up to two on an older EPYC.
demo-whole: setup
	$(BIN)/snakemake --profile demo vqgan_lc matrix

test-whole: setup
	$(BIN)/python -m pytest -m whole

# On a real Slurm, of plain processes (tests/slurm/cluster.py); installs it by apt where it is missing. Measured
# on 2 cores: 12:38 on an AMD EPYC; 7:57 on an Intel Xeon, before a test of half a minute was added.
test-slurm: setup
	$(BIN)/python -m pytest -m "slurm and not long"

# SIGKILL at 30 random moments of every stage, and the other faults. FAULT_SEED=N repeats a run.
test-faults: setup
	FAULT_TRIALS=30 $(BIN)/python -m pytest tests/faults -rP
	$(BIN)/python -m pytest -m long

# Every claim about speed and memory, against the libraries; writes docs/performance.md. 27 minutes on 2 idle cores of an
# Intel Xeon, an hour on an AMD EPYC's.
benchmark: setup
	$(BIN)/python benchmarks/run.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

lock: setup
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --extra dev --quiet pyproject.toml -o requirements.lock

clean:
	rm -rf $(DEMO) .snakemake
