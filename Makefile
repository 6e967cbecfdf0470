# `make` alone lists the targets. Everything runs in .venv, which `install` makes and keeps up to date.

.DEFAULT_GOAL := help
VENV := .venv
# More arguments for the program that a target runs: make test ARGS='-k qcow2 -x'
ARGS ?=
# The interpreter to make .venv with; empty means the first Python that is new enough.
PYTHON ?=
export PYTHON

.PHONY: help install oracles demo test check format powercut stress bench conformance clean

help: ## list the targets
	@printf 'aioblock. Start with: make demo\n\n'
	@awk 'BEGIN { FS = ":[^#]*## " } /^[a-z]+:[^#]*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@printf '\nAdd arguments with ARGS: make test ARGS="-k qcow2 -x"\n'

install: ## make .venv with the project and its development tools (quick when nothing changed)
	@scripts/setup venv

oracles: ## install the programs that tests compare with (qemu-img, nbdinfo, ...), if this user may
	@scripts/setup oracles

demo: install ## a short tour: make an image chain, look at it, convert and compare it
	$(VENV)/bin/python examples/demo.py $(ARGS)

test: install oracles ## the whole test suite
	$(VENV)/bin/pytest -n auto $(ARGS)

check: install ## linters, types, spelling and layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict aioblock
	$(VENV)/bin/codespell
	$(VENV)/bin/pytest -q tests/test_layering.py

format: install ## put imports and layout in order
	$(VENV)/bin/ruff check --select I --fix .
	$(VENV)/bin/ruff format .

stress: install oracles ## random sequences done by aioblock and by QEMU to twins (ARGS="--sequences 10000")
	$(VENV)/bin/python -m tests.stress $(ARGS)

# How many states `make powercut` looks at; a seed that it printed, to look at that one again.
STATES ?= 200000
SEED ?=
powercut: install ## cut the power at STATES=1000000 moments and look what is left, or replay SEED=...
	$(VENV)/bin/python -m tests.faults.powercut --states $(STATES) $(if $(SEED),--seed '$(SEED)') $(ARGS)

bench: install ## run the benchmarks
	$(VENV)/bin/python -m benchmarks $(ARGS)

conformance: install ## run the listed tests of QEMU's own suite (ARGS="--format qcow2 --show 154", ARGS=--help)
	@scripts/setup conformance
	$(VENV)/bin/python -m tests.conformance $(ARGS)

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
