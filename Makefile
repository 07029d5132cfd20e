# Each target sets up what it needs and then runs; the second run is quick.
#   make demo PYTHON=python3.12
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"    (a smaller, CPU-only PyTorch)

PYTHON = python3
PIP_ARGS =
CHECK_ARGS =
VENV = .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

help:
	@echo "make demo   install into $(VENV), then segment phantom patients: results in demo-out/"
	@echo "make test   install into $(VENV), then run the tests"
	@echo "make test-slicer   install into $(VENV)-slicer, then test the 3D Slicer module over real MRML and stand-in widgets"
	@echo "make test-interop   install into $(VENV)-interop, then open what we write with other tools (dcmqi, 3D Slicer's readers, Orthanc ...)"
	@echo "make check-pythonqt   fetch and build PythonQt and ctk's widgets, then check the 3D Slicer module on them (optional, minutes)"
	@echo "make lint   install into $(VENV), then check style and types"

demo: $(VENV)/installed
	$(BIN)/sgan-demo --output demo-out

test: $(VENV)/installed-test
	$(BIN)/python -m pytest tests --ignore=tests/slicer --ignore=tests/interop --ignore=tests/web --ignore=tests/cluster

# Of the same makefile in an environment of its own: slicer-core brings VTK, which the engine has no use for.
test-slicer:
	$(MAKE) VENV=$(VENV)-slicer run-test-slicer

run-test-slicer: $(VENV)/installed-test-slicer
	$(BIN)/python -m pytest tests/slicer

# The panel over the real PythonQt and ctk's widgets, in the environment of test-slicer: no part of the tests, as it
# fetches sources (or takes them from PYTHONQT_SOURCES) and builds them with Qt 5.15. See docs/slicer.md.
#   make check-pythonqt CHECK_ARGS="-k batch"
check-pythonqt:
	$(MAKE) VENV=$(VENV)-slicer run-check-pythonqt

run-check-pythonqt: $(VENV)/installed-test-slicer
	$(BIN)/python tests/pythonqt/run.py $(CHECK_ARGS)

# In a third one: dcmqi and slicer-core are readers of our files, not parts of the program. What pip does not bring
# (Orthanc, dcmtk, dicom3tools, node) is skipped where it is missing, with SGAN_REQUIRE_INTEROP=1 an error.
test-interop:
	$(MAKE) VENV=$(VENV)-interop run-test-interop

run-test-interop: $(VENV)/installed-test-interop
	$(BIN)/python -m pytest tests/interop

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamps come last in their recipes: an interrupted installation is taken up again.
$(VENV)/environment:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/environment pyproject.toml setup.py
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/environment pyproject.toml setup.py
	$(INSTALL) --editable ".[test]"
	touch $@

$(VENV)/installed-test-slicer: $(VENV)/environment pyproject.toml setup.py
	$(INSTALL) --editable ".[test-slicer]"
	touch $@

$(VENV)/installed-test-interop: $(VENV)/environment pyproject.toml setup.py
	$(INSTALL) --editable ".[test-interop]"
	touch $@

$(VENV)/installed-dev: $(VENV)/environment pyproject.toml setup.py
	$(INSTALL) --editable ".[dev]"
	touch $@

.PHONY: help demo test test-slicer run-test-slicer check-pythonqt run-check-pythonqt test-interop run-test-interop lint
