# Two commands do everything on a fresh machine: `make demo` and `make test`.
# One environment, .venv/, is made once and shared by all targets. With a ROS 2 sourced, its rclpy is used;
# without one, ROS 2 Kilted comes from PyPI.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LCE_VENV := .venv-lce
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGE_FILES := setup.py setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-arm test-lce wheels engine lint format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo engine  ## Localise a flight over real imagery with the real ROS 2 node (FLIGHT=dir MAP=file for your own)
	$(BIN)/python -m demo $(if $(FLIGHT),--flight "$(FLIGHT)") $(if $(MAP),--map "$(MAP)")

test: $(VENV)/.test engine lint  ## Lint, type-check and run the tests
	$(BIN)/python -m pytest

test-all: $(VENV)/.wheels engine lint  ## The same with the tests that take minutes
	$(BIN)/python -m pytest -m ''

test-arm: $(VENV)/.test  ## The engine, the gallery reader and a short flight on an emulated ARM CPU (needs qemu and a cross compiler)
	$(BIN)/python test/arm/run.py

test-lce: $(LCE_VENV)/.test  ## The tests of the Larq way, in an environment of its own
	OMP_NUM_THREADS=1 $(LCE_VENV)/bin/python -m pytest test/test_lce.py test/test_lce_runtime.py

wheels: $(VENV)/.wheels  ## Wheels with the engine inside for x86-64 and 64-bit ARM (glibc 2.28 or newer), in dist/
	for machine in x86_64 aarch64; do \
	  mkdir -p build/wheel-$$machine && \
	  BICROSSNET_REQUIRE_ENGINE=1 ZIG_GLOBAL_CACHE_DIR="$(CURDIR)/build/zig" \
	  CXX="$(CURDIR)/$(BIN)/python -m ziglang c++ -target $$machine-linux-gnu.2.28" \
	  $(BIN)/python setup.py --quiet build --build-base build/wheel-$$machine egg_info --egg-base build/wheel-$$machine \
	    bdist_wheel --plat-name manylinux_2_28_$$machine --dist-dir dist || exit 2; \
	done
	@ls -l dist/*.whl

# Compiles what changed since the installation; without a compiler ONNX Runtime runs the networks.
engine: $(VENV)/.demo
	-@$(BIN)/python -m bicrossnet_ros.engine.build

lint: $(VENV)/.test  ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test  ## Let ruff rewrite the formatting
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment and everything that was built
	rm -rf $(VENV) $(LCE_VENV) bicrossnet_ros/engine/*.so build dist install log out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info

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

$(VENV)/.wheels: $(VENV)/.test
	@echo "Installing the cross compiler into $(VENV) (once) ..."
	$(PIP) ziglang
	touch $@

# TensorFlow 2.16, the last that Larq is made for, wants older packages than the rest.
$(LCE_VENV)/.test: setup.py constraints-lce.txt
	@echo "Installing Larq and TensorFlow into $(LCE_VENV) (once, some minutes) ..."
	$(PYTHON) -m venv $(LCE_VENV)
	$(LCE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lce.txt -e '.[training,lce,builder,test]'
	touch $@

comma := ,
