PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-slow check lint types bench clean

quickstart: $(STAMP)  ## Fine-tune the embedded model and show what changed
	$(BIN)/balora quickstart --overwrite

test: $(STAMP)  ## The default test suite
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2

test-slow: $(STAMP)  ## The tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

check: lint types test  ## What CI runs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)  ## The benchmarks behind docs/performance.md
	$(BIN)/python -m benchmarks.bench_svd

# pip, not uv: it finds a CPU build of torch where one is provided locally
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) outputs .mypy_cache .pytest_cache .ruff_cache .hypothesis
