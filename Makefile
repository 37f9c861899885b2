# `make demo` and `make test` do all the set-up they need, in .venv. Another environment: make VENV=path test
# The demo needs no development tools. A smaller torch, without CUDA: README, "Disk space".
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.blemish-ready
RUNS := $(VENV)/.blemish-runs

.PHONY: demo test test-slow test-avx2 lint docs clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $(READY) $(RUNS)

$(RUNS): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $(RUNS)

demo: $(RUNS)   ## PatchCore learns real textures and finds painted defects, offline
	$(BIN)/blemish demo

# Two processes of one thread each: small tensors gain nothing from a second thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: $(READY) lint   ## the checks of the code, and all tests but the slow ones: minutes
	$(PYTEST) --dist loadfile -m "not slow"

test-slow: $(READY)   ## stops and kills, long examples, browsers and servers where they are at hand
	$(PYTEST) --dist loadfile -m slow

# One file has most of these tests: they are shared out singly.
test-avx2: $(READY)   ## the methods' common tests as a processor without AVX-512 and bf16 units computes
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) --dist worksteal -m "not slow" tests/contract tests/ops

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(READY)   ## the site in build/site: pages lie as in the repository, so that links hold in both
	rm -rf build/pages && mkdir -p build/pages
	cp -r README.md CONTRIBUTING.md CHANGELOG.md docs results build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf .venv build demo-output .mypy_cache .ruff_cache .pytest_cache
