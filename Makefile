# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# PYTHON chooses the interpreter (3.11 to 3.13); the environment lives in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
# What the libraries of the CPU engine and for ONNX Runtime are compiled from.
KERNEL := $(wildcard coreml/kernel/src/* coreml/kernel/ort/* coreml/kernel/include/*) coreml/kernel/CMakeLists.txt

.PHONY: quickstart test lint format clean

quickstart: $(VENV)/.installed
	$(BIN)/mobilemoe quickstart --run $(RUN) --overwrite

test: lint
	@sh scripts/find-swift > /dev/null || true # says so where there is none
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} will not do: make PYTHON=python3.12 (3.11 to 3.13)")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml hatch_build.py $(KERNEL) | $(VENV)/bin/python
	@echo "Installing into $(VENV): some minutes the first time."
	sh scripts/install-openblas $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[plot]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs coreml/kernel/build mobilemoe_mlx/*/libmobilemoe*
