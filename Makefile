# Everything runs in an environment of this folder; the first target makes it.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# scrapy-redis in an environment of its own, for `make chaos`.
PEER := .venv-peer
READY := $(VENV)/.ready
# Tests that need no other process: the check of a minute.
QUICK := $(wildcard tests/test_*.py tests/unit tests/property tests/shell)
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip --no-input -qq

.DEFAULT_GOAL := help
SEEDS ?= 1000

.PHONY: help demo picture check test long equivalence sim sim-bite chaos chaos-tools fuzz \
	foreign waiting compat bench lock clean setup test-unit test-rest

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 13

setup: $(READY) ## make the environment and install the project into it

demo: $(READY) ## two workers share a crawl, one is killed; the items are plain Scrapy's
	@$(BIN)/python -m dscrapy.demo $(if $(SITE),--site '$(SITE)') \
		$(if $(PROJECT),--project '$(PROJECT)' --spider '$(SPIDER)') $(ARGS)

picture: $(READY) ## draw docs/demo.svg anew, from what "make demo" prints
	@$(BIN)/python docs/picture.py

check: $(READY) ## format, lint, types, and the tests that take a minute
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(QUICK)

test: $(READY) ## the same, and the tests with real processes
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	@$(MAKE) --no-print-directory -j 2 test-unit test-rest

# Measured, and beside the others: it waits for nothing, they mostly do.
test-unit: $(READY)
	@$(BIN)/python -m tests.floor

test-rest: $(READY)
	$(BIN)/python -m pytest -q -m "not long" --ignore tests/unit \
		-n 3 --dist loadfile --no-loadscope-reorder

long: $(READY) ## tests of more kills, sizes and spiders than every run needs: minutes
	$(BIN)/python -m pytest -q -m long -n 3 --dist loadfile --no-loadscope-reorder

equivalence: $(READY) ## the same spiders as plain Scrapy runs them, and with 200 kills
	EQUIVALENCE=all $(BIN)/python -m pytest -q tests/equivalence
	$(BIN)/python -m tests.equivalence.campaign $(ARGS)

sim: $(READY) ## simulate SEEDS=n runs in which everything fails, from seed FIRST=n
	@$(BIN)/python -m tests.sim --seeds $(SEEDS) $(if $(FIRST),--first $(FIRST)) $(ARGS)

sim-bite: $(READY) ## plant bugs in the product; the simulation has to find each
	@$(BIN)/python -m tests.sim.bite $(ARGS)

chaos: $(READY) chaos-tools ## real faults, row by row, and scrapy-redis beside; 20 minutes
	$(BIN)/python -m tests.chaos $(ARGS)

# What rows of chaos need beside the project. Without root, or without a network, their
# rows are skipped and say why.
chaos-tools: $(READY)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		for one in ip:iproute2 mkfs.ext4:e2fsprogs unshare:util-linux \
			redis-server:redis-server; do \
			command -v "$${one%%:*}" >/dev/null && continue; \
			[ -n "$$updated" ] || apt-get update -qq; updated=1; \
			apt-get install -y -qq --no-install-recommends "$${one##*:}" || true; \
		done; \
	fi
	@[ -e $(PEER)/.ready ] || { $(PYTHON) -m venv $(PEER) && \
		PIP_DISABLE_PIP_VERSION_CHECK=1 $(PEER)/bin/python -m pip --no-input -qq \
			install -c constraints.txt scrapy -r tests/chaos/peer-requirements.txt && \
		touch $(PEER)/.ready; } || true

fuzz: $(READY) ## hostile bytes for every decoder and port, a quarter of an hour; ARGS=--seconds=N
	@$(PIP) install -c constraints.txt --only-binary atheris -e '.[dev,fuzz]' || \
		echo "no atheris for this Python: mutations are random, not guided" >&2
	$(BIN)/python -m tests.fuzz $(ARGS)

foreign: $(READY) ## Scrapy's own test spiders, plain and here; SCRAPY=folder of its sources
	@[ -n "$(SCRAPY)" ] || { \
		echo "name a folder of Scrapy's sources: make foreign SCRAPY=/path/to/scrapy-2.19.0" >&2; \
		echo "(python3 -m pip download --no-deps --no-binary scrapy scrapy==2.19.0 gets them)" >&2; \
		exit 1; }
	$(BIN)/python -m tests.foreign $(SCRAPY) $(ARGS)

waiting: $(READY) ## slow and gathering pipelines, awaiting callbacks: as fast as in Scrapy
	$(BIN)/python -m benchmarks.waiting_pages $(ARGS)

compat: $(READY) ## the fast equivalence suite on other versions of Scrapy and Python
	@$(BIN)/python -m tests.compat $(ARGS)

bench: $(READY) ## measure; prints machine, versions, command and result
	$(BIN)/python -m benchmarks

lock: ## write constraints.txt anew from what the newest versions are
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip --no-input -qq install '.[dev,fuzz]'; \
	{ echo '# Made by "make lock": the versions that "make" installs, everywhere.'; \
	  "$$folder/venv/bin/python" -m pip freeze --exclude dscrapy; } > "$$folder/out"; \
	mv "$$folder/out" constraints.txt

clean: ## remove the environment and whatever tools left behind
	rm -rf $(VENV) $(PEER) .compat build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .coverage demo-out fuzz-out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last, so an installation that broke off is done again.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "no $(PYTHON): install Python 3.11 or newer, or: make PYTHON=/path/to/it" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.11" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }
	@echo "setting up $(VENV); the first time this takes a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
