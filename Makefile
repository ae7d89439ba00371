# The commands of the README. `make demo` and `make test` set up everything they need.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile
TOOLS := browser or npm or qemu or wheels or slurm
.DEFAULT_GOAL := help
.PHONY: help demo demo-signal test test-slow test-full check docs docs-generate clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:[^#]*## /\t/'

demo: .venv/installed  ## install, run the whole pipeline on the shipped sample, show the report
	$(BIN)/kdedge run-all --data sample --out artifacts/demo --allow-undecided

demo-signal: .venv/installed  ## the same on synthetic crash pulses: windows of acceleration sensors
	test -d artifacts/crash-pulses || $(BIN)/python examples/crash_pulses.py artifacts/crash-pulses
	$(BIN)/kdedge run-all --data windows:artifacts/crash-pulses --teacher-epochs 8 \
		--out artifacts/demo-signal --allow-undecided

test: .venv/installed  ## run the tests that need minutes and nothing but pip
	$(PYTEST) -m "not (slow or $(TOOLS))"

test-slow: .venv/installed  ## run the other tests that need nothing but pip
	$(PYTEST) -m "slow and not ($(TOOLS))"

test-full: .venv/installed  ## run every test; needs chromium, npm, qemu-user and slurm-wlm
	$(PYTEST)

check: .venv/installed  ## lint, check the format, the types and the spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs: .venv/docs  ## build the documentation into build/site
	$(BIN)/python docs/collect.py
	$(BIN)/zensical build

docs-generate: .venv/installed  ## write the generated parts of README.md, docs/ and artifacts/reference
	$(BIN)/python docs/generate.py

clean:  ## remove what the commands above made
	rm -rf .venv artifacts/demo artifacts/demo-signal artifacts/crash-pulses build dist

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
