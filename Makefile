# Everything a clone needs, with nothing but Python (3.11 or newer), git and make on the machine.

PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
ARGS ?=
# Seconds after which all tests together count as hanging: they take some 200 on two slow cores, more where
# others use them as well. One test has 120 (pyproject.toml).
TEST_LIMIT ?= 420
# Test files that run side by side.
JOBS ?= 3
ROUNDS ?= 50
# How many simulated meshes `make sim` plays.
SEEDS ?= 100

.DEFAULT_GOAL := help
.PHONY: help setup demo test netns fuzz kill-points sim-chooser check format bench suffixes sim sim-table lock clean

help:  ## What this Makefile can do
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(STAMP)  ## The environment .venv with the locked dependencies (again only when they change)

$(STAMP): requirements/dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "uservpn needs Python 3.11 or newer, and '$(PYTHON)' is not:" \
	        "$$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11" >&2; exit 1; }
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --no-build-isolation -e .
	@touch $@

demo: setup  ## A client and two exits on loopback; ARGS=--once ends after its own check
	$(BIN)/uservpn demo $(ARGS)

test: setup  ## All tests; ARGS goes to pytest
	$(BIN)/python -m pytest --session-timeout=$(TEST_LIMIT) -n $(JOBS) --dist loadfile \
	    --no-loadscope-reorder tests $(ARGS)

netns: setup  ## The tests in network namespaces at full size (needs root; see docs/testing.md)
	USERVPN_NETNS=full $(BIN)/python -m pytest -s --timeout=300 tests/netns $(ARGS)

fuzz: setup  ## The fuzz tests, ROUNDS times as long as in `make test`
	USERVPN_FUZZ=$(ROUNDS) $(BIN)/python -m pytest -q tests/unit/test_fuzz.py tests/unit/test_fuzz_transcript.py \
	    tests/unit/test_tcp_link.py tests/unit/test_udp_link.py tests/unit/test_runs.py tests/unit/test_patterns.py tests/unit/test_lists.py tests/unit/test_rules.py $(ARGS)

kill-points: setup  ## The chooser's memory after 10,000 kills: it opens each time
	USERVPN_KILL_POINTS=10000 $(BIN)/python -m pytest -q -o timeout=1800 tests/unit/test_state_file.py -k kill

sim-chooser: setup  ## Thirty days of choosing exits in simulated time, beside other policies
	$(BIN)/python -m benchmarks.choosing $(ARGS)

sim: setup  ## SEEDS simulated meshes, each with other faults, on every core (docs/mesh.md)
	$(BIN)/python -m uservpn.sim --seeds $(SEEDS) $(ARGS)

sim-table: setup  ## What simulated meshes of 8, 32, 128 and 254 nodes cost, as the table in docs/mesh.md
	$(BIN)/python -m uservpn.sim --table $(ARGS)

check: setup  ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

format: setup  ## Rewrite the sources to the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## Speed and memory, side by side with shadowsocks-libev where it is installed
	$(BIN)/python -m benchmarks $(ARGS)

suffixes: setup  ## Take the public suffix list anew from the package publicsuffixlist (make lock first)
	$(BIN)/python scripts/suffixes.py

lock:  ## Write requirements/dev.lock anew from pyproject.toml (needs uv; UV_ARGS=--upgrade)
	printf 'setuptools>=77\n' | $(UV) pip compile --quiet --no-config --universal --generate-hashes \
	    --python-version 3.11 --no-emit-index-url --custom-compile-command 'make lock' \
	    --extra dev --extra dns --extra geo --extra kcp --extra socks --extra wss $(UV_ARGS) -o requirements/dev.lock pyproject.toml -

clean:  ## Remove the environment and everything that was built
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
