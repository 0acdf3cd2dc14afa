# `make demo` and `make test` are all a newcomer needs: each makes .venv and installs what is missing.
# OMP_WAIT_POLICY: where another process holds a core, torch's threads would otherwise spin while they wait for each other.
PYTHON ?= python3

# With TORCH=2.14.1, say, an environment of its own has that release instead of the one in constraints.txt.
VENV := .venv$(TORCH:%=-%)
BIN := $(VENV)/bin

.PHONY: demo test test-all test-frameworks device bench docs lint mutants catalogue clean

demo: $(VENV)/installed
	OMP_WAIT_POLICY=passive $(BIN)/python notebooks/digits.py $(DEMO)

# A process for each core, one thread each: small tensors gain nothing from more, and much of the time goes into compilers.
# TESTS="tests/engine/test_fused.py" are these alone. A test that hangs for five minutes ends with its process: it says where it was.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) --numprocesses auto --maxprocesses 8 --dist worksteal \
	    --override-ini faulthandler_timeout=300 --override-ini faulthandler_exit_on_timeout=true

# Each law on every transform, and whatever else takes longer than a newcomer or a commit should wait.
test-all: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "full or not full" --numprocesses auto --maxprocesses 8 --dist worksteal

# Under the libraries whose loops take our optimizers. timm brings torchvision, of which pip finds one for this torch's build only
# where that is an ordinary one: TORCH=2.14.1, say.
test-frameworks: $(VENV)/frameworks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/adapters/test_frameworks.py tests/docs/test_guide_of_frameworks.py --numprocesses auto

# On a machine with a GPU, what optimizers do there, in eight minutes.
device: $(VENV)/installed
	$(BIN)/python tests/device.py

# Without the libraries to compare with, where they can't be had, it is still a benchmark.
bench: $(VENV)/installed
	-$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[bench]'
	$(BIN)/python tests/benchmarks/bench_fused.py $(BENCH)
	$(BIN)/python tests/benchmarks/bench_meta.py $(BENCH_META)
	$(BIN)/python tests/benchmarks/fidelity.py --others $(BENCH_FIDELITY)

# The site, docs/_build/index.html. It fails where a public name has no docstring, a link within it is dead, or a page would load something.
# Links to other hosts are not followed: there may be no network.
docs: $(VENV)/docs
	rm -rf docs/_build
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py

catalogue: $(VENV)/installed
	$(BIN)/python tests/catalogue.py
	$(BIN)/ruff format --quiet functional_optim/__init__.pyi

clean:
	rm -rf docs/_build docs/api docs/gallery .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .hypothesis

# Some releases of torch want an older setuptools than others. A torch for GPUs brings Triton; beside any other, where it can be had,
# it runs in its interpreter; where not, its tests are left out.
$(VENV)/installed: pyproject.toml setup.py constraints.txt
	@echo "Installing into $(VENV): some minutes, most of them for PyTorch."
	$(PYTHON) -m venv $(VENV)
	sed -e '' $(if $(TORCH),-e 's/^torch==.*/torch==$(TORCH)/' -e '/^setuptools==/d') constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --constraint $(VENV)/constraints.txt --editable '.[demo,test,lint]'
	-$(BIN)/python -c "import triton" 2> /dev/null || $(BIN)/python -m pip install --quiet \
	    --constraint $(VENV)/constraints.txt --editable '.[gpu-kernels]'
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/frameworks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[frameworks,timm]'
	touch $@
