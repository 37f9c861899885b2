# `make demo` and `make test` do all the set-up they need, in .venv. Another environment: make VENV=path test
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.blemish-ready

.PHONY: demo test lint clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)   ## PatchCore learns real textures and finds painted defects, offline
	$(BIN)/blemish demo

test: $(READY) lint   ## everything the continuous check runs
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf .venv demo-output .mypy_cache .ruff_cache .pytest_cache
