# make demo   the whole job on the slide in the package
# make test   the test suite
# make docs   this documentation as a site, in site/
# make fuzz   our parsers under hostile bytes, FUZZ_SECONDS (60) each
# make audit  what bandit says of the code, and whether the shipped weights are the recorded ones
# All make .venv first (Python 3.11 to 3.13) and install what they need; a second run is quick.

PYTHON ?= python3
FUZZ_SECONDS ?= 60
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: demo test fuzz lint audit docs bench clean

demo: $(READY)
	$(BIN)/coverslip demo --output coverslip-demo

# two processes, a file of tests each at a time; with torch's own threads they would wait for one another
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

fuzz: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt atheris \
	  || echo "atheris does not install here: inputs are mutated without coverage"
	$(BIN)/python fuzz/run.py --seconds $(FUZZ_SECONDS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(READY)
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive coverslip
	cd coverslip/heads/weights && sha256sum --check --quiet SHA256SUMS

docs: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --editable '.[docs]'
	$(BIN)/python docs/making/architecture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt '.[bench]'
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/encoders.py
	$(BIN)/python benchmarks/geojson.py
	$(BIN)/python benchmarks/nuclei.py
	$(BIN)/python benchmarks/search.py

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) coverslip-demo benchmarks/generated site
