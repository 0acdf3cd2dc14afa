# `make demo` and `make test` are all a newcomer needs: each makes .venv and installs what is missing.
# OMP_WAIT_POLICY: where another process holds a core, torch's threads would otherwise spin while they wait for each other.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all bench lint mutants catalogue clean

demo: .venv/installed
	OMP_WAIT_POLICY=passive $(BIN)/python notebooks/digits.py $(DEMO)

# A process for each core, one thread each: small tensors gain nothing from more, and much of the time goes into compilers.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# Each law on every transform, and whatever else takes longer than a newcomer or a commit should wait.
test-all: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "full or not full" --numprocesses auto --maxprocesses 8 --dist worksteal

# Without the libraries to compare with, where they can't be had, it is still a benchmark.
bench: .venv/installed
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python tests/benchmarks/bench_fused.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_meta.py $(BENCH_META)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

mutants: .venv/installed
	$(BIN)/python tests/mutants.py

catalogue: .venv/installed
	$(BIN)/python tests/catalogue.py
	$(BIN)/ruff format --quiet functional_optim/__init__.pyi

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test,lint]'
	touch $@
