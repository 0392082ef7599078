# make demo   install, then let the embedded model draw, edit, answer and think; writes demo/index.html
# make test   install, then lint, format, types and the fast tests
# make slow   the slow tests
# make bench-full   the official size with random weights (writes 30 GB into runs/full once; half an hour)
# make clean  remove what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the demo needs, and what the tests need beside it.
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# The exact version is named on pip's command line, and first: a range would let pip take another build of PyTorch.
TORCH := $(shell grep -E '^torch==' constraints.txt)

.PHONY: venv demo test slow bench-full clean
.DEFAULT_GOAL := test

venv: $(DEV)

$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH) -c constraints.txt
	$(BIN)/python -m pip install $(TORCH) -c constraints.txt -e .
	@touch $@

$(DEV): $(BASE)
	$(BIN)/python -m pip install $(TORCH) -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(BASE)
	$(BIN)/bagel demo

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow"

# pytest's status 5 says that no test is marked slow, which is no failure.
slow: venv
	$(BIN)/python -m pytest -m slow || test $$? -eq 5

bench-full: venv
	$(BIN)/python benchmarks/full.py

clean:
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find bagel_mot tests -name __pycache__ -type d -prune -exec rm -rf {} +
