PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCALE_STAMP := .venv-scale/.installed
# a file is one worker's, so that what its tests share is made once
TWO := -n 2 --dist loadscope
# the DeBERTa of old transformers is scripted, which torch has deprecated
JIT := 'ignore:`torch.jit.script` is deprecated:DeprecationWarning'
OLDEST := transformers==5.19.0 peft==0.21.0 accelerate==1.12.0
LIBRARIES := "import sysconfig; print(sysconfig.get_path('purelib'))"
# what another Python can break: types, text, numbers, files, the command line, one training
CUT := tests/config tests/recipes tests/regularizers tests/data tests/test_cli.py tests/test_cli_help.py \
	tests/test_objective.py tests/test_objective_nlu.py tests/test_objective_replay.py
OTHER := .venv-$(notdir $(PYTHON))

.PHONY: quickstart test test-slow test-scale test-gpu test-kernel test-oldest test-python check lint types schemas bench docs dist clean

quickstart: $(STAMP)  ## Fine-tune the embedded model and show what changed
	$(BIN)/balora quickstart --overwrite

test: $(STAMP)  ## The default test suite
	$(BIN)/python -m pytest -m "not slow and not gpu and not scale" $(TWO)

test-slow: $(STAMP)  ## The tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu and not scale"

test-scale: $(SCALE_STAMP)  ## Quantised bases and sharded training, in an environment with their libraries
	.venv-scale/bin/python -m pytest -m "scale" $(TWO)

test-gpu: $(STAMP)  ## The tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

# the versions that pyproject.toml starts from, for the files that use private interfaces
test-oldest: requirements.lock
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet -r requirements.lock
	.venv-oldest/bin/pip install --quiet $(OLDEST)
	.venv-oldest/bin/pip install --quiet --no-deps --no-build-isolation -e .
	.venv-oldest/bin/python -m pytest -m "not slow and not gpu and not scale" $(TWO) -W $(JIT) tests/anchored tests/trainers

# with what pip finds for it: the lock is for one Python
test-python:  ## Another Python, as in make test-python PYTHON=python3.13
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install --quiet $(shell grep "^torch==" requirements.lock)
	$(OTHER)/bin/pip install --quiet -e '.[dev]'
	$(OTHER)/bin/python -m pytest -m "not slow and not gpu and not scale" $(TWO) $(CUT)
	$(OTHER)/bin/balora quickstart --preset paper --max_steps 2 --overwrite --output_dir outputs/python

# the kernel for GPUs in Triton's interpreter, which needs an older numpy
test-kernel: requirements.lock
	$(PYTHON) -m venv .venv-kernel
	.venv-kernel/bin/pip install --quiet -r requirements.lock
	.venv-kernel/bin/pip install --quiet triton==3.6.0 "numpy<2.4"
	.venv-kernel/bin/pip install --quiet --no-deps --no-build-isolation -e .
	TRITON_INTERPRET=1 .venv-kernel/bin/python -m pytest -n 2 tests/fused/test_kernel.py

check: lint types test  ## What CI runs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

schemas: $(STAMP)  ## The JSON schemas that are packaged, when a field or a library has changed
	for recipe in train compare lab; do \
		$(BIN)/balora schema $$recipe > src/balora/schemas/$$recipe.json || exit 1; done

docs: $(STAMP)  ## The documentation site, in site/: strict, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(STAMP)  ## The benchmarks behind docs/performance.md
	mkdir -p outputs
	$(BIN)/python -m benchmarks.bench_svd --out outputs/bench_svd.jsonl

# pip, not uv: it finds a CPU build of torch where one is provided locally
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(SCALE_STAMP): requirements-scale.lock requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-scale
	.venv-scale/bin/pip install --quiet -r requirements-scale.lock
	.venv-scale/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# the wheel's environment finds the libraries of this one, and balora nowhere but in the wheel
dist: $(STAMP)  ## The sdist and the wheel, checked for the package index and installed; without a network
	rm -rf dist .venv-dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m venv .venv-dist
	.venv-dist/bin/pip install --quiet --no-deps --no-index dist/*.whl
	$(BIN)/python -c $(LIBRARIES) > "$$(.venv-dist/bin/python -c $(LIBRARIES))/locked.pth"
	cd dist && ../.venv-dist/bin/balora --version && ../.venv-dist/bin/balora env

clean:
	rm -rf dist $(VENV) .venv-dist .venv-kernel .venv-oldest .venv-python* .venv-scale outputs site .mypy_cache .pytest_cache .ruff_cache .hypothesis
