# make demo   set up, then the whole method on Pocket City, ending with runs/pocket/report.html
# make test   set up, then every test               make test-extras  optional packages, see below
# make lint   style, spelling and types of all files    make docs   the documentation site in site/
# make format what ruff can fix by itself                 make setup  only the environment in .venv
# make bench  what things cost, on a quiet machine, about 40 minutes; see benchmarks/README.md
#
# Needs Python 3.11 or newer and nothing else. PYTHON=... names another interpreter.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test bench test-extras setup lint format docs doctor clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

demo: $(STAMP)
	$(RUN) pipeline/run.py --recipe pocket $(if $(PROCESSES),--num-processes $(PROCESSES))

# One thread per test process: several run side by side.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(TEST_ARGS)

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) benchmarks/suite.py $(BENCH_ARGS)

# controlnet-aux and xformers as published, in an environment of their own that sees .venv. What
# cannot be installed or imported on a machine is skipped with the reason.
EXTRAS := .venv-extras
SITE = $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
test-extras: $(STAMP)
	@test -x $(EXTRAS)/bin/python || "$(PYTHON)" -m venv $(EXTRAS)
	@echo "$(call SITE,$(CURDIR)/$(VENV))" > "$(call SITE,$(EXTRAS))/streetforge.pth"
	-$(EXTRAS)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps \
		-r tests/extras/requirements.txt
	OMP_NUM_THREADS=1 $(EXTRAS)/bin/python -m pytest tests/extras

doctor: $(STAMP)
	$(RUN) pipeline/doctor.py

# The checks of .pre-commit-config.yaml.
lint: $(VENV)/.dev
	$(RUN) -m pre_commit run --all-files --show-diff-on-failure

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

$(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: $(STAMP)
	$(RUN) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[$*]"
	@touch $@

# The stamp is written last, so an interrupted installation is simply continued.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python3 found; install Python 3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than 3.11; give PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(RUN) && $(RUN) -c "" 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[test]"
	$(RUN) -m pip check
	@touch $(STAMP)

clean:
	rm -rf $(VENV) $(EXTRAS) build dist site *.egg-info .pytest_cache .ruff_cache
