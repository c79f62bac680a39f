# make demo and make test are all that a new machine needs: Python 3.11+, Node and make.
.PHONY: help install demo up test test-slow lint types unit bench histories openapi screenshots lock clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := activities api bench chain commands db devstack domain gateway relay services starter telemetry tests workflows cli.py composition.py \
	settings.py worker.py
TEST_PROCESSES ?= 6
# PYTEST_OPTIONS=--cpu shows where the time goes
PYTEST_OPTIONS ?=
# What was compiled is kept: each process of a run would otherwise compile the product and all tests for itself.
PYTEST = env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(CURDIR)/$(VENV)/pycache $(BIN)/pytest -q --processes $(TEST_PROCESSES) $(PYTEST_OPTIONS)
# make lock UPGRADE=--upgrade takes the newest releases
UPGRADE ?=

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links $(UPGRADE) pyproject.toml

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(VENV)/.installed $(VENV)/.browser node_modules/.installed ## Set everything up in .venv and node_modules

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "settle needs Python 3.11 or newer; $(PYTHON) is older. Use: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.browser: $(VENV)/.installed devstack/browser.py
	@# For the tests of the page. Where it may not be installed it says so, and everything else goes on.
	@$(BIN)/python -m devstack.browser
	@touch $@

node_modules/.installed: package.json package-lock.json
	@command -v npm >/dev/null || { echo "settle needs Node with npm for the local chain (the anvil binary)."; exit 1; }
	@# Not `npm ci`: it requires every platform's binary in the lock file, which a registry may lack.
	npm install --no-save --loglevel=error --no-audit --no-fund
	@touch $@

demo: install ## Watch payments settle on a local chain, one with its worker killed half-way
	@$(BIN)/settle demo

up: install ## Run the whole system on this machine until Ctrl-C
	@$(BIN)/settle up

test: install ## What every change must pass: linter, strict types, import directions, all tests but the slow ones
	@# Linter and types beside the tests, which show how far they are; what the two said comes at the end, in one piece.
	@$(MAKE) --no-print-directory lint types > $(VENV)/checks.txt 2>&1 & checks=$$!; \
		$(MAKE) --no-print-directory unit; tests=$$?; \
		wait $$checks; checks=$$?; cat $(VENV)/checks.txt; \
		exit $$((tests || checks))

test-slow: install ## The tests that are long by nature: real time-outs, the bench, the demo from a wheel, every crash
	$(PYTEST) -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: install
	$(BIN)/mypy $(SOURCES)

unit: install
	$(PYTEST) -m "not slow"

bench: install ## Settlements beside DBOS and plain code, what they cost, postings, HTTP, calls, deposits, webhooks
	@$(BIN)/settle bench

histories: install ## Record the histories of every workflow's paths again
	@for file in tests/*/record_histories.py; do \
		$(BIN)/python -m "$$(echo "$${file%.py}" | tr / .)" || exit; \
	done

openapi: install ## Write docs/openapi.json again
	$(BIN)/python -m tests.api.write_openapi

screenshots: install ## Take the screenshots in docs/images again
	$(BIN)/python -m tests.browser.take_screenshots

lock: install ## Pin all dependencies again, by hash and without addresses
	$(COMPILE) --all-extras -o requirements.txt
	$(COMPILE) -o requirements-runtime.txt

clean: ## Remove what was installed; state folders stay
	rm -rf $(VENV) node_modules build *.egg-info .mypy_cache .ruff_cache .pytest_cache
