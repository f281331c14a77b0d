# Every target is a line or two that anyone could type by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup assets run test smoke search lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt -r requirements-dev.txt
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -e .
	touch $@

assets: setup
	$(BIN)/python get_offline_assets.py

run: assets
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/offline.sh $(ARGS)

smoke: assets
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/offline.sh --size smoke $(ARGS)

search: setup
	$(BIN)/python try_it.py $(ARGS)

test: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf runs assets $(VENV)
