# One command checks everything: `.ci/run`. `make help` lists the rest.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
PYTEST_ARGS ?= -n 2

VENV  := .venv
VENV4 := .venv-transformers4
CODE  := $(foreach dir,src tests benchmarks training soak,$(if $(wildcard $(dir)/*.py $(dir)/*/*.py),$(dir)))

# Resolution never goes outside the locked versions, from the first command on. The build backend is
# installed from the same lock, so no build environment is resolved on the side.
PIP = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2)
define install
$(PYTHON) -m venv --clear $(1)
$(call PIP,$(1),$(2)) setuptools
$(call PIP,$(1),$(2)) --no-build-isolation --editable '.[dev]'
touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-python test-fast test-transformers4 check format bench docs lock soak clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## */\1\t/' | expand -t 22

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard csrc/*)
	$(call install,$(VENV),constraints.txt)

$(VENV4)/installed: pyproject.toml constraints-transformers4.txt $(wildcard csrc/*)
	$(call install,$(VENV4),constraints-transformers4.txt)

demo: $(VENV)/installed  ## read and steer a small model that ships with the package
	$(VENV)/bin/interlace demo

test: $(VENV)/installed  ## the whole suite, under the newest transformers
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-python: $(VENV)/installed  ## the whole suite without the part that is compiled
	INTERLACE_COMPILED=0 $(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-fast: $(VENV)/installed  ## what takes seconds
	$(VENV)/bin/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-transformers4: $(VENV4)/installed  ## the tests of language models, under the newest transformers 4
	$(VENV4)/bin/python -m pytest -m language $(PYTEST_ARGS)

check: $(VENV)/installed  ## format, lint, types, import order, spelling
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy $(CODE)
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/codespell

format: $(VENV)/installed  ## rewrite the code the way `check` wants it
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/installed  ## interlace against hand-written hooks, as ratios
	$(VENV)/bin/python -m benchmarks

docs: $(VENV)/installed  ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --clean

soak: $(VENV)/installed  ## long random runs that look for crashes and leaks
	$(VENV)/bin/python -m soak

# A fresh resolution for each of the two lines of transformers. Torch is pinned before anything is resolved.
LOCK_HEAD = '\# Every package that development and CI use, resolved together. Renew with `make lock`,' \
            '\# after a change of dependencies in pyproject.toml or to move to newer versions.'
define resolve
$(PYTHON) -m venv --clear .venv-lock
printf '%s\n' '$(TORCH)' '$(2)' > .venv-lock/pins.txt
$(call PIP,.venv-lock,.venv-lock/pins.txt) '.[dev]'
{ printf '%s\n' $(LOCK_HEAD); \
  .venv-lock/bin/python -m pip freeze --all --exclude interlace --exclude pip | sed 's/+cpu$$//'; } > $(1)
rm -rf .venv-lock
endef

lock:  ## resolve constraints*.txt anew
	$(call resolve,constraints.txt,transformers>=5)
	$(call resolve,constraints-transformers4.txt,transformers<5)

clean:  ## remove everything that can be made again
	rm -rf $(VENV) $(VENV4) .venv-lock site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
