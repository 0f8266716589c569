# `make help` lists the targets. Each one makes the environment it needs first, from a bare Python 3.11+.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.moorage-installed
T ?=

# PYTHONSAFEPATH: the root folders (train/, kernels/, ...) must not shadow other packages in our own commands.
# Never for the demo: it starts a pool, and users' jobs inherit the environment.
SAFE := PYTHONSAFEPATH=1
DEMO_FLAGS := $(if $(KEEP),--keep) $(if $(FULL),--full)

.DEFAULT_GOAL := help
.PHONY: help install demo test check format soak mutate bench lock clean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

$(STAMP): requirements.lock pyproject.toml setup.py
	@PYTHON="$(PYTHON)" .ci/venv $(VENV)

install: $(STAMP)  ## the environment in .venv; nothing to do when the lock is unchanged

demo: $(STAMP)  ## data to endpoint on a real local pool (KEEP=1 leaves it up, FULL=1 adds the long steps)
	@$(BIN)/python examples/flights/demo.py $(DEMO_FLAGS)

test: $(STAMP)  ## every test but the soak, two modules at a time (T='-k name' or a path narrows it)
	@$(SAFE) $(BIN)/pytest $(or $(T),-n 2)

check: $(STAMP)  ## lint, format, types, import contracts; all four, then the verdict
	@failed=; \
	$(BIN)/ruff check --output-format concise . || failed="$$failed lint"; \
	$(BIN)/ruff format --check --output-format concise . || failed="$$failed format"; \
	$(SAFE) $(BIN)/mypy || failed="$$failed types"; \
	$(SAFE) $(BIN)/lint-imports --no-logo || failed="$$failed imports"; \
	if [ -n "$$failed" ]; then echo "make check failed:$$failed"; exit 1; fi

format: $(STAMP)  ## write what `make check` would want of the layout
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

soak: $(STAMP)  ## the long runs: churn, two databases, a million events
	@$(SAFE) $(BIN)/pytest -m soak --timeout 3600 $(T)

mutate: $(STAMP)  ## break the code on purpose: each headline test must notice (T='--only ID')
	@$(BIN)/python tests/mutate.py $(T)

bench: $(STAMP)  ## every benchmark beside its peer (T=--quick for a short run)
	@$(BIN)/python benchmarks/_frame.py $(T)

lock: $(STAMP)  ## rewrite requirements.lock from the environment
	@$(SAFE) $(BIN)/python .ci/lock.py

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) build dist demo-report src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
