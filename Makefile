# Every target makes its own virtual environment from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench docs notebooks wheel clean

demo: $(STAMP)
	$(BIN)/deo-cube demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.race

docs: $(STAMP)
	$(BIN)/pip install -q -e ".[docs]" -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP)
	$(BIN)/python docs/hooks/notebooks.py

# The wheel in an empty environment, with everything that it brings, away from the repository. Minutes, and the network.
wheel: $(STAMP)
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel -q --no-deps -w build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install -q "$$(ls $(CURDIR)/build/wheel/*.whl)[viz]" -c constraints.txt
	cd build/wheel && venv/bin/pip check && venv/bin/deo-cube doctor && venv/bin/deo-cube demo --size 256

clean:
	rm -rf $(VENV) demo site

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e ".[dev]" -c constraints.txt
	touch $@
