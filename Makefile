# Everything here works on a machine with only Python 3.11, pip and make. `make` alone lists the targets.

UV_VERSION := 0.13.9
UV         := .uv/bin/uv
BIN        := .venv/bin
PYTEST = $(BIN)/pytest --numprocesses=2 --dist=loadfile
READY      := .venv/.ready

# The first of these names that is Python 3.11, or the one given as `make PYTHON=/path/to/python3.11 ...`.
PYTHON = $(shell for name in python3.11 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) or print(sys.executable))' 2>/dev/null && break; done)

# The main job, and which tests instead of all: `make test TESTS="tests/recsys -k din"`.
DEMO  ?= recsys run --data movielens-small --protocols time,paper --preset paper --jobs 2 --epochs 30 --patience 3 --min-epochs 8 \
	--methods host,finetune_all,finetune_adaptive,finetune_device_10,duet,persona_held_back,persona_basis,persona
# Where `make evidence` finds the data sets that no package provides.
DATA  ?= data
TESTS ?=

# Passive waiting and one thread a process: with a spinning barrier any other busy process makes torch 100 times slower.
export OMP_WAIT_POLICY = PASSIVE
export OMP_NUM_THREADS = 1
export MLFLOW_DISABLE_TELEMETRY = true
# Without compiled bytecode every process spends ten seconds on its imports.
export UV_COMPILE_BYTECODE = 1
export UV_PYTHON_DOWNLOADS = never
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench evidence ui doctor lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with every locked package and the command persona (at once when it is there)

demo: $(READY) ## run the main job: films in, a personalised recommender out, compared, registered, asked
	$(BIN)/persona $(DEMO)

# The coverage of persona/ is that of its own tests. The others trace and compile hosts, and torch's tracing has crashed under coverage.
test: $(READY) ## run the tests; persona/ has to stay covered to 95 % by its own
ifeq ($(TESTS),)
	$(PYTEST) --cov=persona --cov-report=term --cov-fail-under=95 tests/persona
	$(PYTEST) --ignore=tests/persona
else
	$(PYTEST) $(TESTS)
endif

lint: $(READY) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## bring all files into the format that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## run the benchmarks, one after the other
	@set -e; for name in $(sort $(basename $(notdir $(wildcard benchmarks/[a-z]*.py)))); do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

evidence: $(READY) ## run what is missing behind the results in docs, with DATA=folder for data that no package provides
	$(BIN)/python -m benchmarks.evidence recsys --data-folder $(DATA)
	$(BIN)/python -m benchmarks.evidence vision --data-folder $(DATA)

ui: $(READY) ## open the MLflow UI on the default store
	$(BIN)/persona ui

doctor: $(READY) ## look for what is wrong with the installation and the store
	$(BIN)/persona doctor

# One lock for use and development: the tests then run on exactly what users run, two exports cannot drift apart, and the
# development tools add 3 % to the 5 GB of the rest. uv.lock stays out of the repository, as it names the package index it
# was made with; its export names no host, and holds the same versions and hashes.
lock: $(UV) ## resolve pyproject.toml again and rewrite requirements.lock
	$(UV) lock
	$(UV) export --quiet --frozen --group cpu --group data --group dev --no-emit-project --no-header \
		--output-file requirements.lock

clean: ## remove the environment and all caches, never data or mlruns
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* htmlcov dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip needs no venv module and no write access to the system for this.
$(UV):
	@test -n "$(PYTHON)" || { echo "Persona needs Python 3.11, and neither python3.11 nor python3 is one:" \
		"install it, or say where it is with 'make PYTHON=/path/to/python3.11 setup'." >&2; exit 1; }
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "requirements.lock is for Linux on x86-64, this is $$(uname -sm):" \
		"drop 'environments' from pyproject.toml and run 'make lock' first." >&2; exit 1; }
	rm -rf .uv
	$(PYTHON) -m pip install --quiet --root-user-action=ignore --target .uv uv==$(UV_VERSION)

$(READY): requirements.lock pyproject.toml | $(UV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
		|| $(UV) venv --quiet --clear --python "$(PYTHON)" .venv
	$(UV) pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
