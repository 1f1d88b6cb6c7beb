# make demo   the main job on the embedded data, without any hub
# make test   everything that CI runs        make check   lint, types, unit tests
# make ui     the MLflow UI on what was recorded here

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export MLFLOW_EXPERIMENT_NAME ?= bertdyn

.PHONY: .venv demo test check ui

.venv: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bertdyn needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.test-extras: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

demo: .venv/.installed
	mlflow run . --env-manager local

test: .venv/.test-extras
	$(BIN)/python -m pytest

check: .venv/.test-extras
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bertdyn entrypoints explorer sweeps
	$(BIN)/python -m pytest -q -m "not slow"

ui: .venv/.installed
	mlflow ui --workers 1
