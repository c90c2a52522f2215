# Everything that a user or a machine calls. `make help` lists it.
# The first run needs the network (Debian packages, wheels); later runs do not, and start at once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
PACKAGES := dataplane shaping switching transport virt vnic bench fuzz
SOURCES := setup.py $(shell find $(wildcard $(PACKAGES)) -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' -path 'bench/*')
BUILT := build/.built-release
ARGS ?=

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="..." hands arguments on: make demo ARGS="--json", make test ARGS="-k switch"'

demo: build  ## two containers, one vnic: the demonstration (vnic demo)
	@$(VENV)/bin/vnic demo $(ARGS)

test: build  ## all tests, against the release build; files side by side, with ARGS one after the other
	@$(PY) -m pytest $(or $(ARGS),-n logical --dist loadfile --no-loadscope-reorder --max-worker-restart 0)

ready:  ## what the machine lacks (Debian packages where allowed), .venv with the pinned packages
	@scripts/ready

build: ready $(BUILT) $(VENV)/bin/vnic  ## compile what changed; install the vnic command into .venv

$(BUILT): $(SOURCES) | ready
	@$(PY) setup.py -q build_ext --inplace >&2
	@$(PY) -m compileall -q $(wildcard $(PACKAGES)) >&2    # also where PYTHONDONTWRITEBYTECODE is set: a successor has to load fast
	@mkdir -p build && touch $@

$(VENV)/bin/vnic: pyproject.toml | ready $(BUILT)
	@$(PY) -m pip install -qq --no-deps --no-build-isolation --config-settings editable_mode=compat -e . >&2
	@touch $@

debug: ready  ## the debug build (invariants and bounds checked) in build/debug
	@$(PY) scripts/checked.py debug --build-only

test-debug: ready  ## all tests against the debug build
	@$(PY) scripts/checked.py debug $(ARGS)

test-asan: ready  ## all tests against the AddressSanitizer build, in build/asan
	@$(PY) scripts/checked.py asan $(ARGS)

fuzz: build  ## a hostile guest and its front end, by Clang's fuzzer, a minute: ARGS="--seconds 3600 rings"
	@$(PY) -m fuzz $(ARGS)

lint: ready  ## ruff, mypy --strict, cython-lint (stubtest is a test: tests/test_stubs.py)
	@$(VENV)/bin/ruff check . >&2
	@$(VENV)/bin/ruff format --check . >&2
	@$(PY) -m mypy >&2
	@PATH=$$PWD/$(VENV)/bin:$$PATH cython-lint $(wildcard $(PACKAGES)) examples >&2   # calls pycodestyle by name

format: ready  ## let ruff format the Python files
	@$(VENV)/bin/ruff check --fix-only -q .; $(VENV)/bin/ruff format .

reference: build  ## write the pages of docs/ that are made of the program
	@$(PY) scripts/reference.py

docs: build  ## the documentation as a web site, in build/docs; a warning or a dead link within it is an error
	@$(PY) -c 'import furo, myst_parser, sphinx' 2>/dev/null || $(PY) -m pip install -qq --disable-pip-version-check \
	    -c requirements/constraints.txt \
	    $$($(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@$(PY) scripts/reference.py --check
	@$(PY) -m sphinx -q -W --keep-going -n -b html -c docs -d build/doctrees . build/docs
	@echo 'vnic: open build/docs/docs/index.html' >&2

man: ready  ## man pages from the commands' help, in build/man
	@$(PY) scripts/man.py build/man >&2

wheel: ready  ## source distribution and wheel in dist, the wheel named after the oldest C library that it runs on
	@scripts/wheel

bench: build  ## measure against a bare C loop and what is installed of the peers
	@$(PY) -m bench $(ARGS)

clean:  ## remove what was built; .venv stays (rm -r .venv build for everything)
	rm -rf build dist dataplane/abi.h *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/bin/vnic
	find $(wildcard $(PACKAGES)) tests examples \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +

.PHONY: help demo test ready build debug test-debug test-asan fuzz lint format reference docs bench clean man wheel
