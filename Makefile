# Every target sets up what it needs in a virtual environment of its own and says what it does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers/.ready
LITELLM := .venv-litellm/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-redis check test-clients test-promises bench-recorded bench-savings bench-redis bench-peers-setup bench-workers bench-litellm bench-proxy chaos soak lock clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

demo: $(READY) ## run the main job: a wrapped client, a gateway that bills, and what was saved
	@$(BIN)/cachemw demo

test: $(READY) ## set up and run all tests
	@echo "Running the tests (under 8 minutes on 2 cores) ..."
	@$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

test-redis: $(READY) ## the stores on every Redis there is, TLS and ACL users among them; lists what it skips
	@command -v redis-server >/dev/null || { \
	  echo "There is no redis-server on PATH: TLS and Redis itself are skipped. On Debian or Ubuntu: apt-get install redis-server"; }
	@$(BIN)/python -m pytest -n 2 --dist loadfile -rs tests/stores

test-clients: $(READY) $(LITELLM) ## the contracts with the real client packages; writes docs/compatibility.md
	@$(BIN)/python -m tests.clients.run

test-promises: $(READY) ## the promises and the simulator's agreement on 10,000 random bodies each
	@EXAMPLES=10000 $(BIN)/python -m pytest -n 2 tests/test_promises.py tests/test_differential.py

check: $(READY) ## formatting, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench-recorded: $(READY) ## the simulated provider against recorded usage
	@$(BIN)/python -m benchmarks.recorded_usage $(wildcard ../shared/data/C2_raw_requests_hashed.jsonl.gz)

bench-savings: $(READY) $(PEERS) ## what each policy pays on each workload; fails where a promise breaks
	@mkdir -p out
	@$(BIN)/python -m benchmarks.savings --seeds 1,2,3 --csv out/savings.csv --svg out/savings.svg

bench-redis: $(READY) ## a fleet over a real Valkey: what it costs, and what it feels of outages; fails where a promise breaks
	@failed=0; \
	$(BIN)/python -m benchmarks.redis_scale || failed=1; \
	$(BIN)/python -m benchmarks.redis_faults || failed=1; \
	exit $$failed

bench-peers-setup: $(PEERS) ## the environment in which the peers' real packages run

bench-workers: $(READY) ## what a fleet saves whose requests are dealt among workers
	@$(BIN)/python -m benchmarks.workers

bench-litellm: $(READY) $(LITELLM) ## the same savings through the real LiteLLM proxy as through wrap
	@$(BIN)/python -m benchmarks.litellm_savings

bench-proxy: $(READY) $(LITELLM) ## what the proxy adds, against a bare one and against LiteLLM's; 1,000 streams
	@$(BIN)/python -m benchmarks.proxy_load

chaos: $(READY) ## 50,000 requests through faults of provider, workers and store, beside hostile tenants (REQUESTS=50000)
	@$(BIN)/python -m benchmarks.chaos --requests $(or $(REQUESTS),50000)

soak: $(READY) ## a steady rate for long: memory, files, keys and latency must stay flat (MINUTES=30)
	@$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)

lock: $(READY) ## pin every dependency anew
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --extra openai --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-deps --group encodings >> requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml tests/clients/litellm/requirements.in \
	  -o tests/clients/litellm/requirements.txt
	for name in openai2 openai3 mitmproxy; do \
	  $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url pyproject.toml tests/clients/requirements-$$name.in \
	    -o tests/clients/requirements-$$name.txt; \
	done

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(PEERS): benchmarks/peers/requirements.txt
	@echo "Setting up .venv-peers with the peers' packages (a minute or two, once) ..."
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install -q --disable-pip-version-check --no-deps -r benchmarks/peers/requirements.txt || { \
	  echo "Installing the peers' packages failed: is a package index reachable from here?"; exit 1; }
	@touch $(PEERS)

$(LITELLM): tests/clients/litellm/requirements.txt pyproject.toml
	@echo "Setting up .venv-litellm with the LiteLLM proxy (some 600 MB, a minute or two, once) ..."
	@$(PYTHON) -m venv .venv-litellm
	@.venv-litellm/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r tests/clients/litellm/requirements.txt || { \
	  echo "Installing the LiteLLM proxy failed: is a package index reachable from here?"; exit 1; }
	@.venv-litellm/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(LITELLM)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "cachemw needs Python 3.11 or newer, and '$(PYTHON)' is not. Install one, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (about a minute, once) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module failed. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock || { \
	  echo "Installing the pinned packages failed: is a package index reachable from here?"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
