# `make reproduce` and `make test` do all set-up by themselves: Python 3.11+ and make are enough.
# ARGS goes to the command: make reproduce ARGS="--profile smoke"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: reproduce test test-fast checks bench bench-platform install ui lock clean
.DEFAULT_GOAL := help

help:
	@echo "make reproduce   train the grid and print the paper's tables (ARGS=\"--profile smoke\" for a quick look)"
	@echo "make test        every test, 17 minutes on 2 cores"
	@echo "make test-fast   those that start no process, a good minute"
	@echo "make checks      ruff and mypy"
	@echo "make bench       the detector's speed beside torchvision's and mmdet's, 13 minutes"
	@echo "make bench-platform  what the platform adds: trials, scheduling, store, MLflow; half an hour"
	@echo "make ui          the MLflow UI on 127.0.0.1"
	@echo "make install     only set up $(VENV)"

install: $(STAMP)

# uv where there is one (seconds), else pip (minutes). requirements.lock pins every version.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	@if command -v uv >/dev/null; then \
	  echo "Setting up $(VENV) with uv (first time: about a minute, 5 GB) ..."; \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock && \
	  uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -e .; \
	else \
	  echo "Setting up $(VENV) with pip (first time: several minutes, 5 GB) ..."; \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
	fi
	@touch $@

reproduce: install
	@$(BIN)/python experiments/reproduce_tables.py $(ARGS)

# In two processes: slow tests start others and wait for them most of the time.
test: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

# Starts neither Ray nor servers nor other processes; a test that does so without a marker fails.
test-fast: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow and not process and not gpu" $(ARGS)

checks: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# mmdet sees the packages of $(VENV) through a .pth file, so torch is not installed a second time.
PEERS := $(VENV)/peers

$(PEERS)/.installed: $(STAMP) benchmarks/requirements-peers.txt
	@$(BIN)/python -m venv $(PEERS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth"
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  -r benchmarks/requirements-peers.txt
	@touch $@

bench: install $(PEERS)/.installed
	@$(BIN)/python -m benchmarks.loading
	@$(BIN)/python -m benchmarks.evaluation
	@$(BIN)/python -m benchmarks.assignment
	@$(BIN)/python -m benchmarks.focal_loss
	@$(BIN)/python -m benchmarks.training_step --all
	@$(BIN)/python -m benchmarks.gpu

bench-platform: install
	@$(BIN)/python -m benchmarks.orchestration
	@$(BIN)/python -m benchmarks.contention
	@$(BIN)/python -m benchmarks.scheduling
	@$(BIN)/python -m benchmarks.store
	@$(BIN)/python -m benchmarks.tracking
	@$(BIN)/python -m benchmarks.commands

ui: install
	@$(BIN)/ablation ui $(ARGS)

lock:
	uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
