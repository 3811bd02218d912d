# Two commands do everything on a fresh machine: `make demo` and `make test`.
# One environment, .venv/, is made once and shared by all targets. With a ROS 2 sourced, its rclpy is used;
# without one, ROS 2 Kilted comes from PyPI.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGE_FILES := setup.py setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## Localise a flight over real imagery with the real ROS 2 node (FLIGHT=dir MAP=file for your own)
	$(BIN)/python -m demo $(if $(FLIGHT),--flight "$(FLIGHT)") $(if $(MAP),--map "$(MAP)")

test: $(VENV)/.test lint  ## Lint, type-check and run the tests
	$(BIN)/python -m pytest

test-all: $(VENV)/.test lint  ## The same with the tests that take minutes
	$(BIN)/python -m pytest -m ''

lint: $(VENV)/.test  ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test  ## Let ruff rewrite the formatting
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment and everything that was built
	rm -rf $(VENV) build install log out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.10 or newer is needed: install python3 or set PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make environments: sudo apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.made $(PACKAGE_FILES)
	@echo "Installing what flies and the gallery builder into $(VENV) (once, some minutes) ..."
	$(PIP) -e '.[$(if $(ROS_DISTRO),,ros$(comma))builder]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "Installing the training and test tools into $(VENV) (once, some minutes) ..."
	$(PIP) -e '.[training,bench,bag,test,dev]'
	touch $@

comma := ,
