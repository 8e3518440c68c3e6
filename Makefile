# `make train` and `make test` do everything, also on a machine with nothing but Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: train test test-all lint docs bench clean

train: $(INSTALLED)
	$(BIN)/python train.py

# One worker per core; a worker that has nothing left takes tests from another.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not gpu"

test-all: test
	$(PYTEST) -m "slow and not gpu"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.quality

# Made again only when it is missing or older than what it is made of.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	mkdir -p $(VENV)/typing
	ln -sfn ../../kernels $(VENV)/typing/sae_kernels  # pyright does not follow editable installs
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build *.egg-info
