# Everything runs in .venv, set up on first use. Needs Python 3.11 to 3.13 and nothing else.

PROMPT ?= a red ball bounces over a meadow at sunset
CANDIDATES := python3.11 python3.12 python3.13 python3
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test lint types clean

demo: .venv/.installed ## one prompt to out/demo.mp4
	@mkdir -p out
	.venv/bin/videogen generate "$(PROMPT)" -o out/demo.mp4 --overwrite
	@echo "The video lies at $(CURDIR)/out/demo.mp4"

test: .venv/.installed-dev ## all tests
	.venv/bin/python -m pytest -q

lint: .venv/.installed-dev
	.venv/bin/ruff check .

types: .venv/.installed-dev
	.venv/bin/mypy

clean: ## remove the environment and what tools left behind
	rm -rf .venv out build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found: install one, or make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --quiet -e .
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --quiet -e ".[data,train,dev]"
	@touch $@ .venv/.installed
