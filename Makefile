# Everything runs in a local environment that is made when it is first needed: python3 >= 3.11 with venv is enough.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test services chaos bench lint docs clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group test
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python example_dags/demo.py

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 -m "not slow and not services"

# pip tries for more than ten minutes which boto3 gets on with the newest python-dateutil; uv answers in seconds.
$(VENV)/.services: $(VENV)/.ready
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --system-certs --python $(BIN)/python --group services
	touch $@

# Real deployments: need a PostgreSQL at 127.0.0.1:5432 that lets user postgres in without a password, and a Redis at 6379.
services: $(VENV)/.services
	$(BIN)/python -m pytest -m services

MINUTES ?= 10
SEED ?= 1
chaos: $(VENV)/.services
	$(BIN)/python -m tests.deployment.chaos --minutes $(MINUTES) --seed $(SEED)

# Minutes; BENCH=--full has the sizes of the aims.
BENCH ?=
bench: $(VENV)/.services
	$(BIN)/python benchmarks $(BENCH)

$(VENV)/.lint: $(VENV)/.ready
	$(BIN)/pip install --quiet --group lint
	touch $@

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/pip install --quiet --group docs
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The pages are in build/docs/index.html"

clean:
	rm -rf .venv .venv-* .demo dist build
