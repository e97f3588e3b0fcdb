# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

# Data, recorded numbers and metric weights that lie beside the checkout are found by themselves.
SIDE := $(wildcard ../shared)
ifneq ($(SIDE),)
export CODIFFUSE_DATA ?= $(abspath $(SIDE)/data)
export CODIFFUSE_FIXTURES ?= $(abspath $(SIDE)/fixtures)
export CODIFFUSE_WEIGHTS ?= $(abspath $(SIDE)/weights)
endif

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/.installed
	$(BIN)/python infer.py experiment=demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.sampling

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
