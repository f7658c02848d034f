# Few verbs. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
N ?= 10
# test processes side by side, each with servers of its own: most of the tests' time is waiting
WORKERS ?= 2
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(VENV)/.ready ## a virtual environment in .venv, from the lock file

lint: setup ## format, lint, strict types, import directions
	$(BIN)/ruff format --check src tests demo bench docs
	$(BIN)/ruff check src tests demo bench docs
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## lint, types, unit and model tests, contract on memory: under 3 minutes
	$(BIN)/pytest -q $(SIDE_BY_SIDE) -m "not lab and not long" tests

test: lint ## everything that a change must pass, on real Kafka, Valkey and Redis: under 20 minutes
	$(BIN)/pytest -q $(SIDE_BY_SIDE) -m "not long" tests

test-all: lint ## also the long runs: full crash matrix, all pairs, all seeds
	$(BIN)/pytest -q $(SIDE_BY_SIDE) tests

matrix: setup ## also on Kafka 3.9, Kafka 3.5 as a source, Redis 8, Sentinel, Cluster: about 15 minutes
	@set -e; export CI=true; run() { echo "== $$*"; env "$$@"; }; \
	redis="tests/contract/test_log_contract.py tests/contract/test_board_contract.py tests/contract/test_redis_*.py"; \
	run CROSSFADE_TEST_REDIS=redis8 $(BIN)/pytest -q $$redis -k "not redis7 and not kafka and not memory-"; \
	run CROSSFADE_TEST_REDIS=sentinel $(BIN)/pytest -q $$redis -k "not redis7 and not kafka and not memory-"; \
	run CROSSFADE_TEST_REDIS=cluster $(BIN)/pytest -q $$redis -k "not redis7 and not kafka and not memory-"; \
	run CROSSFADE_TEST_KAFKA=3.9.2 $(BIN)/pytest -q tests/contract -k kafka; \
	run CROSSFADE_TEST_KAFKA=3.9.2 CROSSFADE_TEST_REDIS=redis8 $(BIN)/pytest -q tests/system/test_directions.py; \
	run $(BIN)/pytest -q tests/system/test_old_source.py tests/system/test_redis_shapes.py

demo: setup ## copy live streams both ways under faults, and prove it; SABOTAGE=drop|dup|swap|alter|invent damages one record
	$(BIN)/python -m demo $(if $(SABOTAGE),--sabotage $(SABOTAGE))

demo-repeat: setup ## the demo N times, each with a new seed
	$(BIN)/python -m demo --repeat $(N)

mutants: setup ## put named faults into our own code, also on real brokers: each must turn a test red
	$(BIN)/python -m tests.mutants --lab

bench: setup ## Crossfade beside public tools on the same data, ratios in build/bench.json: at most 20 minutes
	$(BIN)/python -m bench

bench-full: setup ## also 2 KiB, 256 lanes, two processes, ten million records
	$(BIN)/python -m bench --full

docs: setup ## generate the reference pages again
	$(BIN)/python docs/generate.py

lock: setup ## renew requirements.lock (hashes, no index addresses)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --all-extras --group dev pyproject.toml -o requirements.lock

clean: ## remove build results and labs (not the download cache)
	rm -rf build .crossfade

.PHONY: help setup lint check test test-all matrix demo demo-repeat mutants bench bench-full docs lock clean
