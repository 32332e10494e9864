# Everything runs in a local environment that is made when it is first needed: python3 >= 3.11 with venv is enough.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test services chaos lint clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group test
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python example_dags/demo.py

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 -m "not slow and not services"

$(VENV)/.services: $(VENV)/.ready
	$(BIN)/pip install --quiet --group services
	touch $@

# A real deployment: needs a PostgreSQL at 127.0.0.1:5432 that lets user postgres in without a password.
services: $(VENV)/.services
	$(BIN)/python -m pytest -m services tests/deployment

MINUTES ?= 10
SEED ?= 1
chaos: $(VENV)/.services
	$(BIN)/python -m tests.deployment.chaos --minutes $(MINUTES) --seed $(SEED)

$(VENV)/.lint: $(VENV)/.ready
	$(BIN)/pip install --quiet --group lint
	touch $@

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-* .demo dist build
