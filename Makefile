# `make book` runs the chapters and builds the site, `make test` proves it. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CHAPTERS ?=
JOBS ?= 2
export JUPYTER_PREFER_ENV_PATH := 1
# threads that sleep while they wait: where a core is taken, spinning ones are ten times slower
export OMP_WAIT_POLICY ?= PASSIVE
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help install book quick test test-all lint lab chapters bench lock clean
help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## make .venv from the hash-locked requirements (once)

$(VENV)/.installed: requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "zfkit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1)"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install it with  apt-get install python3-venv"; exit 1; }
	@echo "installing the locked packages into $(VENV) (about 6 GB, mostly torch; one to three minutes)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@$(PY) -m uv pip sync --quiet --compile-bytecode --python $(PY) --require-hashes requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@$(PY) -m uv pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

book: install ## run every chapter in quick mode, print the table, build the site under build/
	$(PY) -m zfkit book --jobs $(JOBS) $(if $(CHAPTERS),--chapters $(CHAPTERS))

# one thread for each process: two threads on two busy cores would wait for each other
quick test test-all: export OMP_NUM_THREADS ?= 1
quick: lint ## lint and unit tests, for while you write (about a minute)
	$(PY) -m pytest -n $(JOBS) -m "not slow and not nightly" tests/test_*.py

test: lint ## all that a change must pass: pytest, strict nbval, papermill with other parameters
	$(PY) -m pytest -n $(JOBS) --no-loadscope-reorder -m "not nightly"

test-all: lint ## and what takes long: whole chapters on real networks and photographs
	$(PY) -m pytest -n $(JOBS) --no-loadscope-reorder -m "nightly or not nightly"

lint: install ## style, and notebooks clean and executed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m zfkit clean --check

lab: install ## open JupyterLab on the notebooks
	$(PY) -m jupyterlab --notebook-dir=notebooks

chapters: install ## re-execute, clean and rewrite the committed notebooks
	$(PY) -m zfkit chapters --jobs $(JOBS) $(if $(CHAPTERS),--chapters $(CHAPTERS))

bench: install ## measure speed against the alternatives
	OMP_NUM_THREADS=1 $(PY) -m pytest -m bench -s tests/bench

lock: install ## write the lock files anew
	$(VENV)/bin/uv pip compile --quiet pyproject.toml --extra test --extra grid --universal --generate-hashes --python-version 3.11 --no-header -o requirements.lock
	echo "uv>=0.9" | $(VENV)/bin/uv pip compile --quiet - --universal --generate-hashes --python-version 3.11 --no-header -o requirements-uv.lock

clean: ## remove build/ and data/cache (not .venv)
	rm -rf build data/cache
