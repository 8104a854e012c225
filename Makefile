# Tasks of a developer. Each target installs what it needs first; a second run is instant.
# Needs GNU make and Python 3.11 or later; see tools/setup for the rest.

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-redis faults faults-fleet bench bench-fleet lint format types check lock clean

PYTEST_ARGS ?=
# Most tests wait for something: two cores have work for four processes. Each file runs in one
# process, because its tests share fixtures; the longest one comes first.
PYTEST_PROCESSES ?= 4
FAULTS_ARGS ?=
REDIS ?= valkey-server
BENCH_ARGS ?=

# A run starts some hundred Python processes. If the environment forbids them to write bytecode,
# each of them compiles the sources.
unexport PYTHONDONTWRITEBYTECODE

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	    || sed -n 's/^\([a-z-]*\):[^#]*## /  make \1: /p' $(MAKEFILE_LIST)

demo: ## RabbitMQ, the bridge and a page with two users; Ctrl-C stops everything
	@tools/setup demo
	@exec .venv/bin/python tools/foreground.py .venv/bin/bridge demo

test: ## all tests, with a real RabbitMQ and real browsers (PYTEST_ARGS="-k word" for some)
	@tools/setup tests
	@.venv/bin/python -m pytest -n $(PYTEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-redis: ## the tests of the Redis store with another server (REDIS=valkey-server, or a path)
	@tools/setup tests
	@TESTS_REDIS_SERVER=$(REDIS) .venv/bin/python -m pytest tests/contract/inbox tests/faults/test_redis_store.py \
	    tests/faults/test_redis_cluster.py tests/integration/redis tests/integration/doctor/test_redis.py $(PYTEST_ARGS)

faults: ## 30 minutes of faults under load (FAULTS_ARGS="--minutes 5 --seed 7")
	@tools/setup tests
	@.venv/bin/python -m tests.faults.suite --minutes 30 --report docs/faults.md $(FAULTS_ARGS)

faults-fleet: ## 30 minutes of faults on three bridges, three RabbitMQ nodes, Redis, HAProxy
	@tools/setup tests
	@.venv/bin/python -m tests.faults.suite --scenario fleet --minutes 30 --at-least 200 --report docs/faults.md $(FAULTS_ARGS)

bench: ## the bridge against Node, Go and plain Python, 25 minutes (BENCH_ARGS="--rounds 1")
	@tools/setup tests
	@exec .venv/bin/python -m tests.bench --rounds 5 --report docs/benchmarks.md $(BENCH_ARGS)

bench-fleet: ## the cost of a fleet, 12 minutes (BENCH_ARGS="--rounds 1 --only hop")
	@tools/setup tests
	@.venv/bin/python -m tests.bench.fleet --report docs/scale.md $(BENCH_ARGS)
	@.venv/bin/python -m tests.bench.scale --report docs/scale.md

lint: ## check format and rules (ruff) without changes
	@tools/setup lint
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

format: ## format the code and apply automatic fixes
	@tools/setup lint
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

types: ## mypy, strict
	@tools/setup lint
	.venv/bin/mypy

docs: ## build the documentation site in build/site; fails on a broken link
	@tools/setup lint
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

check: lint types ## lint and types

lock: ## regenerate the lock files from pyproject.toml and tests/package.json
	@tools/lock

clean: ## remove environments, packages and caches
	rm -rf .venv tests/node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find bridge tests -name __pycache__ -type d -prune -exec rm -rf {} +
