PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup demo test test-browser test-faults lint docs wheel format bench bench-scale accuracy photographs clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(STAMP)  ## virtual environment in .venv with every version pinned

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## the whole job on synthetic images, about two minutes on 2 cores
	$(BIN)/crackvae demo --out crackvae-demo

test: setup  ## every test but the long ones, two files of tests at a time
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-browser: setup  ## the page in a real Chromium, which must be there: apt-get install chromium
	$(BIN)/python -m pytest -m browser tests/report

test-faults: setup  ## kills, lost nodes, full disks, failing stores: half an hour; writes docs/reliability.md
	$(BIN)/python tests/faults/report.py

lint: setup  ## ruff, mypy --strict, the import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## the documentation as a site, in site/; a broken link fails (with --quiet it would not)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

wheel: setup  ## wheel and sdist in dist/; the wheel installed in a virtual environment of its own scores images
	$(BIN)/python .ci/wheel.py

format: setup  ## rewrite the code in ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## how fast it is beside named alternatives, from real data: 14 minutes, 45 without AVX-512; writes WORK/performance.md
	$(BIN)/python benchmarks/performance/throughput.py $(DATA) $(WORK)

bench-scale: setup  ## surveys of up to ten million rows, up to eight nodes: half an hour, 80 minutes without AVX-512; writes WORK/scale.md, nodes.md
	$(BIN)/python benchmarks/performance/scale.py $(WORK)
	$(BIN)/python benchmarks/performance/nodes.py $(WORK)

accuracy: setup  ## what the models are worth, from real data: hours, without AVX-512 six, and goes on where it stopped; writes WORK/accuracy.md
	$(BIN)/python benchmarks/accuracy.py $(DATA) $(WORK)

photographs: setup  ## what photographs show, from real data: an hour; writes WORK/page.md
	$(BIN)/python benchmarks/photographs.py $(DATA) $(WORK)

clean:  ## what setup, demo, docs and wheel made
	rm -rf .venv crackvae-demo site dist
