# The one door. Needs Python 3.10 or newer with its venv module; everything else is installed, at the versions in
# constraints.txt, into .venv. To use another Python: make PYTHON3=python3.12 ...

PYTHON3 ?= python3
PYTHON := .venv/bin/python
PIP_INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(PYTHON) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
PACKAGE_FILES := setup.cfg pyproject.toml constraints.txt
BENCHMARKS := env_stepping gae bfloat16 learner value_learner agents throughput

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test test-slow check format docs bench clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

train: .venv/.stamp-train ## install the library, then train MAPPO on a cooperative task
	$(PYTHON) examples/mappo_spread.py

test: .venv/.stamp-dev ## run the tests, without the slow ones
	$(PYTEST)

test-slow: .venv/.stamp-dev ## run only the slow tests: learning runs and other long checks
	$(PYTEST) -m slow

check: .venv/.stamp-dev ## lint, formatting and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy coterie

format: .venv/.stamp-dev ## apply the formatting and the safe fixes that check asks for
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

docs: .venv/.stamp-docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

bench: .venv/.stamp-dev ## run every benchmark, one after the other
	@set -e; for name in $(BENCHMARKS); do \
		echo "== benchmarks/$$name.py"; $(PYTHON) benchmarks/$$name.py; done

clean: ## remove .venv and everything else that is made here
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

# One environment, filled in steps. A stamp is touched only after its install has succeeded, so that an interrupted one is
# taken up again; a virtual environment that is not whole is made anew.
define INSTALL
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON3) -m venv --clear .venv
	@echo "installing coterie[$(1)] into .venv"
	@$(PIP_INSTALL) --editable '.[$(1)]'
endef

.venv/.stamp-train: $(PACKAGE_FILES)
	$(call INSTALL,plot)
	@touch $@

.venv/.stamp-dev: $(PACKAGE_FILES)
	$(call INSTALL,dev)
	@touch .venv/.stamp-train $@

.venv/.stamp-docs: $(PACKAGE_FILES)
	$(call INSTALL,docs)
	@touch $@
