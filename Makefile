# Every target is a line or two that anyone could type by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup assets run run-main mine recipes bench mteb experiments gpu-check test faults rehearse scale smoke
.PHONY: loaders search serve report lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: $(wildcard requirements*.txt) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt -r requirements-dev.txt
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -e .
	touch $@

assets: setup
	$(BIN)/python get_offline_assets.py

run: assets
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/offline.sh $(ARGS)

mine: assets
	@test -n "$(DOCS)" || { echo "error: name your folder: make mine DOCS=path" >&2; exit 2; }
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/my_domain.sh "$(DOCS)" $(ARGS)

smoke: assets
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/offline.sh --size smoke $(ARGS)

recipes: assets
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/all.sh $(ARGS)

bench: assets
	$(BIN)/python bench/run_all.py $(ARGS)

mteb: assets
	$(BIN)/pip install --disable-pip-version-check -q -c requirements.txt -r requirements-mteb.txt
	$(BIN)/python benchmark_mteb.py $(ARGS)

experiments: assets
	$(BIN)/python bench/experiments/run.py $(ARGS)

scale: assets
	$(BIN)/python bench/scale.py $(ARGS)

loaders: assets
	$(BIN)/python bench/loaders.py $(ARGS)

gpu-check: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" python bench/gpu_check.py $(ARGS)

search: setup
	$(BIN)/python try_it.py $(ARGS)

serve: setup
	$(BIN)/python serve_demo.py $(ARGS)

report: setup
	$(BIN)/python report.py $(ARGS)

run-main: setup
	$(BIN)/python distil_model2vec.py $(ARGS)

test: lint
	$(BIN)/python -m pytest

faults: setup
	$(BIN)/python -m pytest tests/faults -m 'long or not long' --least-faults 200 $(ARGS)

rehearse: setup
	PYTHONPATH=tests $(BIN)/python -m rehearsal.rehearse $(ARGS)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf runs assets $(VENV)
