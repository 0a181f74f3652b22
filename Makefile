# Every target makes its own virtual environment from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-lowest coverage lint bench docs notebooks wheel clean

demo: $(STAMP)
	$(BIN)/deo-cube demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

# The tests that `make test` leaves out. Continuous integration and `make coverage` run all.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The report is in htmlcov/ and coverage.xml.
coverage: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q --cov --cov-report=term:skip-covered --cov-report=html --cov-report=xml

bench: $(STAMP)
	$(BIN)/python -m benchmarks.race

docs: $(STAMP)
	$(BIN)/python -m pip install -q --group docs -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP)
	$(BIN)/python docs/hooks/notebooks.py

# The wheel in an empty environment, first the core alone, then with the demo, away from the repository. Minutes, and the network.
wheel: $(STAMP)
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel -q --no-deps -w build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install -q "$$(ls $(CURDIR)/build/wheel/*.whl)" -c constraints.txt
	cp tests/core_install.py build/wheel && cd build/wheel && DEO_CUBE_OFFLINE=1 venv/bin/python core_install.py .
	build/wheel/venv/bin/pip install -q "$$(ls $(CURDIR)/build/wheel/*.whl)[demo]" -c constraints.txt
	cd build/wheel && venv/bin/pip check && venv/bin/deo-cube doctor && venv/bin/deo-cube demo --size 256

# The lowest versions that pyproject.toml allows, in an environment of their own (Python 3.11). Minutes, and the network.
LOWEST := $(VENV)-lowest
test-lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q "pip>=25.1"
	$(LOWEST)/bin/python -m pip install -q -e ".[all]" -c constraints-lowest.txt
	$(LOWEST)/bin/python -m pip install -q -c constraints-lowest.txt "pytest>=9" pytest-timeout pytest-xdist hypothesis jsonschema \
		netCDF4 psutil httpx2 websockets "moto[s3,server]"
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -q tests/cube tests/encoder tests/embedding tests/store tests/heads tests/test_lowest.py

clean:
	rm -rf $(VENV) $(VENV)-lowest demo site

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "pip>=25.1"  # the first that knows dependency groups
	$(BIN)/python -m pip install -q -e ".[all]" --group dev -c constraints.txt
	touch $@
