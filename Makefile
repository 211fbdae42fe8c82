# `make run` and `make test` first set up everything that they need in .venv.
SHELL := /bin/bash
# Where to look for Python: on PATH, and in the versions of pyenv. The first that is new enough is used.
PYTHONS ?= python3 python3.14 python3.13 python3.12 python3.11 \
	$(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.*/bin/python3)
PYTHON ?= $(shell for p in $(PYTHONS); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= poolsrv.toml
# Hundreds of processes of the tests import these. Only what has changed is compiled.
COMPILE = $(BIN)/python -m compileall -q poolsrv plugins tools
# Parallel test processes: more than CPUs, since tests mostly wait.
PROCESSES ?= 9
# The tree of a Debian, which `make test-debian` makes.
DEBIAN ?= $(CURDIR)/build/debian
# The compiled wheel, and a checkout with its packages: `make test-compiled`.
COMPILED := build/compiled

# Of `make fuzz`: seconds for each target, and which targets; all of them, if none is named.
FUZZ_SECONDS ?= 60
FUZZ_TARGET ?=
# Tests against a model, which `make fuzz` runs for longer than `make test`.
MODELS = tests/net/test_stream_model.py tests/dispatcher/test_books_model.py tests/dispatcher/test_kernel_model.py
# Of both: the seed, to repeat inputs; another one each time, if none is given. `make fuzz-http` prints its own.
FUZZ_SEED ?=

.PHONY: help run check test test-compiled test-all test-debian test-nodes chaos soak fuzz fuzz-corpus fuzz-http lint bench bench-quick dist docs screenshots clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

run: $(VENV)/run.stamp ## set up, then serve the sample poolsrv.toml (CONFIG=FILE for another)
	exec $(BIN)/poolsrv --config "$(CONFIG)"

check: $(VENV)/run.stamp ## set up, then check the sample poolsrv.toml
	$(BIN)/poolsrv check --config "$(CONFIG)"

test: $(VENV)/tests.stamp ## set up, then run the tests (ARGS='-k name' for some, ARGS='-m "not server"' for the quick ones)
	@$(COMPILE)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

test-compiled: $(COMPILED)/tests.stamp ## build the compiled wheel, then run the same tests on it (needs a C compiler; ARGS as with test)
	cd $(COMPILED)/checkout && POOLSRV_TESTS_EXPECT=compiled env -u PYTHONDONTWRITEBYTECODE \
		$(CURDIR)/$(VENV)-compiled/bin/python -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

# In a virtual environment of its own. The wheel is made again when something of it has changed.
$(COMPILED)/wheel.stamp: $(BIN)/python pyproject.toml $(shell find poolsrv plugins tools -name '*.py' -o -name '*.html')
	rm -rf $(COMPILED)/wheel && mkdir -p $(COMPILED)/wheel
	POOLSRV_COMPILE=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w $(COMPILED)/wheel .
	test -x $(VENV)-compiled/bin/python || "$(PYTHON)" -m venv $(VENV)-compiled
	for wheel in $(COMPILED)/wheel/*.whl; do \
		$(VENV)-compiled/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$$wheel" && \
		$(VENV)-compiled/bin/python -m pip install --quiet --disable-pip-version-check "$$wheel[test,lint]" || exit 1; done
	@touch $@

$(COMPILED)/tests.stamp: $(COMPILED)/wheel.stamp $(shell find tests docs examples bench tools -type f -not -path '*/.venv/*' -not -path '*/build/*' -not -name '*.pyc' | grep -v ' ')
	$(VENV)-compiled/bin/python -m tools.compiled_checkout $(COMPILED)/checkout
	@touch $@

test-all: ## run the tests on every installed Python from 3.11 on (PYTHONS='a b' for these)
	@seen=; failed=; for p in $(PYTHONS); do \
		v=$$($$p -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null) || continue; \
		[[ " $$seen " != *" $$v "* ]] || continue; \
		seen="$$seen $$v"; echo "== Python $$v"; \
		$(MAKE) --no-print-directory test PYTHON="$$p" VENV=.venv-$$v || failed="$$failed $$v"; \
	done; \
	[ -n "$$seen" ] || { echo "no Python from 3.11 on was found: set PYTHONS" >&2; exit 1; }; \
	[ -z "$$failed" ] || { echo "failed on:$$failed" >&2; exit 1; }

test-debian: $(VENV)/dev.stamp $(DEBIAN)/etc/debian_version ## run the steps of docs/operations.md in a fresh Debian (needs root, mmdebstrap and systemd-container; minutes)
	POOLSRV_DEBIAN_TREE="$(DEBIAN)" $(BIN)/python -m pytest tests/examples/test_debian.py $(ARGS)

$(DEBIAN)/etc/debian_version:
	mkdir -p "$(dir $(DEBIAN))"
	mmdebstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3-venv bookworm "$(DEBIAN)"

fuzz: $(VENV)/fuzz.stamp ## look for inputs and orders of events that break a rule (FUZZ_SECONDS=60 for each target, FUZZ_TARGET='a b' for these, FUZZ_SEED)
	$(if $(FUZZ_TARGET),,HYPOTHESIS_PROFILE=deep FUZZ_SECONDS="$(FUZZ_SECONDS)" $(BIN)/python -m pytest -n 2 $(MODELS))
	$(BIN)/python -m tests.fuzz.run --seconds "$(FUZZ_SECONDS)" $(if $(FUZZ_SEED),--seed "$(FUZZ_SEED)") $(FUZZ_TARGET)

fuzz-corpus: $(VENV)/fuzz.stamp ## keep what `make fuzz` has found, as few inputs as reach all of it
	$(BIN)/python -m tests.fuzz.run --minimise $(FUZZ_TARGET)

fuzz-http: $(VENV)/dev.stamp ## give the same requests to poolsrv, h11, Apache and lighttpd (FUZZ_SECONDS, FUZZ_SEED)
	$(BIN)/python -m tests.fuzz.differential.run --seconds "$(FUZZ_SECONDS)" $(if $(FUZZ_SEED),--seed "$(FUZZ_SEED)")

test-nodes: $(VENV)/dev.stamp ## three nodes behind HAProxy, in networks of their own (needs root, haproxy, wrk and iproute2; minutes)
	@$(COMPILE)
	POOLSRV_NODES=1 $(BIN)/python -m pytest tests/examples/test_nodes.py $(ARGS)

chaos: $(VENV)/dev.stamp ## disturb a server under load for ten minutes, and judge it (CHAOS_SECONDS, CHAOS_SEED; best as root)
	@$(COMPILE)
	CHAOS_SECONDS="$(CHAOS_SECONDS)" CHAOS_SEED="$(CHAOS_SEED)" $(BIN)/python -m tools.chaos

soak: $(VENV)/dev.stamp ## serve a million requests of all kinds, and compare memory (SOAK_REQUESTS; half an hour or more)
	@$(COMPILE)
	SOAK_REQUESTS="$(SOAK_REQUESTS)" $(BIN)/python -m tools.chaos.soak

lint: $(VENV)/dev.stamp ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp ## measure against the references and the peers (minutes)
	$(BIN)/python bench/run.py

bench-quick: $(VENV)/dev.stamp ## check that the benchmark works (its figures mean nothing)
	$(BIN)/python bench/run.py --quick

docs: $(VENV)/docs.stamp ## build the site of the documentation in build/site, and check it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build
	$(BIN)/python -m tools.website.check_site build/site

screenshots: $(VENV)/dev.stamp ## take the pictures of the documentation again (needs chromium; a minute)
	$(BIN)/python -m tools.screenshots

dist: $(VENV)/dist.stamp ## build sdist, wheel and compiled wheel in dist/, and check them in empty environments (needs a C compiler)
	rm -rf dist
	export SOURCE_DATE_EPOCH="$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 1580601600)}"; \
	$(BIN)/python -m build --outdir dist && \
	POOLSRV_COMPILE=1 $(BIN)/python -m build --wheel --outdir dist && $(BIN)/python -m tools.check_dist dist

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "poolsrv needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/run.stamp: $(VENV)/bin/python pyproject.toml
	@echo "setting up $(VENV), once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@$(COMPILE)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/bin/python pyproject.toml
	@echo "setting up $(VENV), once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	@$(COMPILE)
	@touch $@ $(VENV)/run.stamp

# Each process of pytest would compile all tests, at the same time: so that is done before, once, on two CPUs.
$(VENV)/tests.stamp: $(VENV)/dev.stamp
	@echo tests/*/ | xargs -n 9 -P 2 env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --collect-only -qq >/dev/null || true
	@touch $@

$(VENV)/fuzz.stamp: $(VENV)/dev.stamp
	@echo "setting up $(VENV) for fuzzing, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/bin/python pyproject.toml
	@echo "setting up $(VENV) for the site, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/dist.stamp: $(VENV)/bin/python pyproject.toml
	@echo "setting up $(VENV) for distributions, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dist]'
	@touch $@ $(VENV)/run.stamp

clean: ## remove everything that the other targets made
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
