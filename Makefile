# `make train` and `make test` do everything, also on a machine with nothing but Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: train test test-all lint bench clean

train: $(INSTALLED)
	$(BIN)/python train.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: test
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.quality

# Made again only when it is missing or older than what it is made of.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build *.egg-info
