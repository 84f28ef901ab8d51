# make reproduce   Figures 1-3 and Tables 1-2 from the synthetic data, into figures/
# make test        all tests
# make test-fast   those that answer in under three minutes
# make lab         JupyterLab on the notebooks
# make lint        ruff and mypy
#
# Each sets up .venv first, and again when pyproject.toml or constraints.txt change.
# Needs Python 3.10 or newer with venv and make; a C++ compiler for pydensecrf2, which tests need and nothing else.
# The tests that open a browser need chromium (apt-get install chromium) and are skipped without it.
# PYTHON=python3.12 chooses another interpreter, PIP_FLAGS='--extra-index-url URL' another build of torch.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: setup reproduce test test-fast lab lint

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
KEY := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
STAMP := $(VENV)/.installed-$(KEY)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt

# The notebooks' kernel is the one in .venv, whatever kernels and search paths the user has set up.
unexport JUPYTER_PATH JUPYTER_CONFIG_DIR PYTHONPATH PYTHONHOME
export JUPYTER_PREFER_ENV_PATH := 1

reproduce: $(STAMP)
	$(BIN)/wsss-nb run --profile quick --out runs/quick --figures figures

test: $(STAMP)
	@echo "all tests: about half an hour on two cores; make test-fast is a part that takes under 3 minutes"
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

lab: $(STAMP)
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(STAMP)

# torch comes first and pinned, so that no other package can bring a second version along.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@echo "setting up $(VENV), a few minutes the first time"
	$(PIP) torch
	@if command -v $${CXX:-c++} > /dev/null; then extras=test; else extras=dev; \
	    echo "no C++ compiler: the CRF is computed in torch, its tests fail; later: $(BIN)/pip install -e '.[crf]'"; fi; \
	$(PIP) -e ".[$$extras]"
	@rm -f $(VENV)/.installed-*
	@touch $@
