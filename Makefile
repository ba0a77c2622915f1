# make train   set up .venv and run the main job
# make test    set up .venv and run the tests; test-slow and test-root run the others
# make soak    two hours of training in which everything around it ends now and then
# make check   lint, types and layers
#
# Where the package index serves CUDA builds of torch by default (PyPI, on Linux) and no GPU is at hand, a CPU build
# saves gigabytes:  make train TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package
DEV := $(VENV)/.dev

.PHONY: train test test-slow test-root soak check format clean

train: $(PACKAGE)
	$(BIN)/levelhead train CartPole-v1

test: $(DEV)
	$(BIN)/pytest -n auto

test-slow: $(DEV)
	$(BIN)/pytest -m slow

test-root: $(DEV)
	$(BIN)/pytest -m root -n 0

soak: $(DEV)
	$(BIN)/python benchmarks/soak.py --minutes 120

check: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python docs/links.py

clean:
	rm -rf $(VENV) src/levelhead/_native*.so

# torch comes first and pinned, so that no resolver looks for another build of it.
$(PACKAGE): pyproject.toml setup.py constraints.txt $(wildcard src/levelhead/native/*.cpp src/levelhead/native/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(DEV): $(PACKAGE)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[box2d,mujoco,atari,envpool]" --group dev
	touch $@
