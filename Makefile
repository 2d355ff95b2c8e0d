# Needs Python 3.11 or newer (with venv), pip and make. `make help` lists the targets.
# Takes the newest Python that it finds, also among pyenv's.
# PYTHON=python3.12 make demo   picks the interpreter (and makes .venv anew if it has another one)
# make setup EXTRAS=cuda,tensorboard   installs extras of pyproject.toml, too; kept until others are named
# make test ARGS="-k nasty"     passes arguments on to pytest

SHELL := /bin/sh
COMMA := ,
VENV := .venv
BIN := $(VENV)/bin
RUN_PYTHON = $(BIN)/python
JOBS ?= 2
ARGS ?=
EXTRAS ?=
TYPED := $(wildcard distill_core nasty swingdistill dpdfd benchmarks)
NOTEBOOKS := $(wildcard docs/notebooks/*.ipynb)
# The experiments that need no network and no accelerator, one a method.
DEMOS := $(wildcard configs/nasty/digits.py configs/swingdistill/records.py configs/dpdfd/digits.py)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev setup-docs demo demo-all test lint format notebooks figures docs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# $(call install,LEVELS,EXTRA): a virtual environment with the project, EXTRA and $(EXTRAS) in it. A stamp
# per level holds the checksum of pyproject.toml and the extras: pip (and so the network) is called
# only when one of them has changed. Without EXTRAS those installed last are kept.
define install
	@fail() { echo "make: $$1" >&2; exit 1; }; \
	fits='import sys, venv, ensurepip; assert sys.version_info >= (3, 11)'; \
	whose='import sys; print(sys.base_prefix, sys.version)'; \
	known='import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"])'; \
	extras='$(EXTRAS)'; \
	[ -n "$$extras" ] || extras=$$(cat $(VENV)/extras 2>/dev/null); \
	wanted="$$(cksum < pyproject.toml)$${extras:+ $$extras}"; \
	if [ -n "$(PYTHON)" ]; then \
	  "$(PYTHON)" -c "$$fits" 2>/dev/null || fail "PYTHON=$(PYTHON) is no Python >= 3.11 with the venv module"; \
	  [ "$$("$(PYTHON)" -c "$$whose")" = "$$($(RUN_PYTHON) -c "$$whose" 2>/dev/null)" ] || rm -rf $(VENV); \
	fi; \
	if $(RUN_PYTHON) -c 'import pip' 2>/dev/null; then \
	  [ "$$(cat $(VENV)/stamp-$(firstword $(1)) 2>/dev/null)" != "$$wanted" ] || exit 0; \
	else \
	  python="$(PYTHON)"; \
	  [ -n "$$python" ] || python=$$(.ci/newest_python 3.11) \
	    || fail "no Python >= 3.11 with the venv module found; name one: make PYTHON=/path/to/python"; \
	  echo "Making $(VENV) with $$($$python -V)"; \
	  $$python -m venv --clear $(VENV) || fail "could not make $(VENV)"; \
	fi; \
	known=$$($(RUN_PYTHON) -c "$$known"); \
	for extra in $$(echo "$$extras" | tr ',' ' '); do \
	  case " $$known " in *" $$extra "*) ;; *) fail "EXTRAS: got $$extra; must be of $$known";; esac; \
	done; \
	all=$$(echo "$(2),$$extras" | sed 's/^,*//; s/,*$$//'); \
	what=".$${all:+[$$all]}"; \
	rm -f $(VENV)/stamp-*; \
	echo "Installing $$what into $(VENV) (a minute or two)"; \
	$(RUN_PYTHON) -m pip install --quiet --disable-pip-version-check -e "$$what" \
	  || fail "pip could not install $$what (its message is above)"; \
	echo "$$extras" > $(VENV)/extras; \
	for level in $(1); do echo "$$wanted" > $(VENV)/stamp-$$level; done
endef

setup:  ## the virtual environment .venv, enough to run the binaries (EXTRAS=cuda,…)
	$(call install,run,)

setup-dev:  ## the same with what the tests and the linters need
	$(call install,dev run,test)

setup-docs:  ## the same with what the documentation site needs
	$(call install,docs dev run,test$(COMMA)docs)

demo: setup  ## the nasty teacher on digits: a table on the console, runs/demo/report.html
	$(RUN_PYTHON) -m nasty.experiment --config configs/nasty/digits.py --workdir runs/demo

demo-all: setup  ## the small experiment of every method
	@set -e; for config in $(DEMOS); do \
	  method=$$(basename $$(dirname $$config)); \
	  workdir=runs/demo-$$method; [ $$method != nasty ] || workdir=runs/demo; \
	  echo "$(RUN_PYTHON) -m $$method.experiment --config $$config --workdir $$workdir"; \
	  $(RUN_PYTHON) -m $$method.experiment --config $$config --workdir $$workdir; \
	done

test: setup-dev  ## all tests, the doctests and the notebooks of docs/
	$(RUN_PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup-dev  ## ruff and pyright
	$(RUN_PYTHON) -m ruff check .
	$(RUN_PYTHON) -m ruff format --check .
	$(RUN_PYTHON) -m pyright --pythonpath $(RUN_PYTHON) $(TYPED)

format: setup-dev  ## formats the code
	$(RUN_PYTHON) -m ruff check --fix .
	$(RUN_PYTHON) -m ruff format .

notebooks: setup-dev  ## runs the notebooks of docs/ and keeps their output
	$(RUN_PYTHON) docs/_ext/run_notebooks.py $(NOTEBOOKS)

figures: setup  ## draws the figures of docs/ from docs/results/
	$(RUN_PYTHON) docs/figures.py

docs: setup-docs  ## the documentation site, docs/_build/html/index.html; needs no network once set up
	$(RUN_PYTHON) -m sphinx -b html -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:  ## removes what make made, but no run under runs/
	rm -rf $(VENV) build dist docs/_build .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
