# Everything on a fresh machine: `make demo` and `make test` set up their own environment.
# `make demo DATA=cifar10 WEIGHTS=FOLDER` is the demo on photographs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo tables test quick lint clean

demo: $(VENV)/.ready
	$(BIN)/python -m experiments.demo $(if $(DATA),--data=$(DATA)) $(if $(WEIGHTS),--weights=$(WEIGHTS))

tables: $(VENV)/.ready
	$(BIN)/python -m experiments.queue.launch --table=digits --seeds=5 --protocol=quick \
	  --students=6 --results=runs/tables/results
	$(BIN)/python -m experiments.report --results=runs/tables/results --out=runs/tables

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

# Skips tests marked slow or hosts; pyproject.toml explains the marks.
quick: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not hosts and not tpu"

lint: $(VENV)/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

# Of runs/ only the demo: the rest are trainings.
clean:
	rm -rf $(VENV) .cache runs/demo
