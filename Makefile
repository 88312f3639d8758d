# Every target sets up what it needs in a virtual environment of its own and says what it does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers/.ready
LITELLM := .venv-litellm/.ready
SBOM := .venv-sbom/.ready
UV := .venv-sbom/bin/uv
COMPILE := $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url
FUZZ := .venv-fuzz/.ready
SECONDS ?= 60
TARGET ?=

.DEFAULT_GOAL := help
.PHONY: help demo test coverage golden test-redis check test-clients test-promises fuzz bench-recorded bench-savings bench-sensitivity bench-redis bench-peers-setup bench-workers bench-litellm bench-proxy bench-bodies chaos soak lock sbom wheel clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

demo: $(READY) ## run the main job: a wrapped client, a gateway that bills, and what was saved
	@$(BIN)/cachemw demo

test: $(READY) ## set up and run all tests
	@echo "Running the tests (about 4 minutes on 2 idle cores) ..."
	@$(BIN)/python -m pytest -n 2 --dist loadfile

coverage: $(READY) ## run all tests under coverage, which takes about twice as long; fails below 95 %
	@$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

golden: $(READY) ## compare outgoing bodies, outputs and public names with tests/golden (3 minutes)
	@$(BIN)/python -m tests.golden.freeze

test-redis: $(READY) ## the stores on every Redis there is, TLS and ACL users among them; lists what it skips
	@command -v redis-server >/dev/null || { \
	  echo "There is no redis-server on PATH: TLS and Redis itself are skipped. On Debian or Ubuntu: apt-get install redis-server"; }
	@$(BIN)/python -m pytest -n 2 --dist loadfile -rs tests/stores

test-clients: $(READY) $(LITELLM) ## the contracts with the real client packages; writes docs/compatibility.md
	@$(BIN)/python -m tests.clients.run

test-promises: $(READY) ## the promises, the simulator's agreement and the best plan on 10,000 random cases each
	@EXAMPLES=10000 $(BIN)/python -m pytest -n 2 tests/engine/test_promises.py tests/test_differential.py tests/core/planner/test_planner_optimum.py

fuzz: $(FUZZ) ## fuzz the parsers of untrusted input: SECONDS=60 for each, or for TARGET=name alone
	@.venv-fuzz/bin/python -m tests.fuzz.run $(SECONDS) $(TARGET)

check: $(READY) ## formatting, lint, types, layers and generated twins
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m scripts.unasync --check

bench-recorded: $(READY) ## the simulated provider against recorded usage
	@$(BIN)/python -m benchmarks.recorded_usage $(wildcard ../shared/data/C2_raw_requests_hashed.jsonl.gz)

bench-savings: $(READY) $(PEERS) ## what each policy pays on each workload; fails where a promise breaks
	@mkdir -p out
	@$(BIN)/python -m benchmarks.savings --seeds 1,2,3 --csv out/savings.csv --svg out/savings.svg

bench-sensitivity: $(READY) ## how far savings move when each tuning constant is halved and doubled
	@$(BIN)/python -m benchmarks.sensitivity

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

bench-bodies: $(READY) ## how long one large request keeps the proxy from others; fails above 100 ms
	@$(BIN)/python -m benchmarks.large_bodies

lock: $(SBOM) ## pin every dependency anew
	$(COMPILE) --extra openai --group dev pyproject.toml -o requirements.lock
	$(COMPILE) --no-deps --group encodings >> requirements.lock
	$(COMPILE) scripts/requirements-sbom.in -o scripts/requirements-sbom.txt
	$(COMPILE) pyproject.toml tests/clients/litellm/requirements.in -o tests/clients/litellm/requirements.txt
	for name in openai2 openai3 mitmproxy; do \
	  $(COMPILE) pyproject.toml tests/clients/requirements-$$name.in -o tests/clients/requirements-$$name.txt; \
	done
	$(COMPILE) pyproject.toml tests/fuzz/requirements.in -o tests/fuzz/requirements.txt

sbom: $(SBOM) ## list the runtime dependencies: out/sbom.cdx.json (CycloneDX, validated), and the table in SECURITY.md
	@mkdir -p out
	@$(COMPILE) --extra openai --extra proxy --constraint requirements.lock pyproject.toml -o out/runtime.txt
	@$(UV) venv -q --clear --python $(PYTHON) .venv-runtime
	@$(UV) pip install -q --python .venv-runtime --no-deps --require-hashes -r out/runtime.txt
	@.venv-sbom/bin/cyclonedx-py environment --validate --output-reproducible --pyproject pyproject.toml \
	  --output-file out/sbom.cdx.json .venv-runtime
	@.venv-sbom/bin/python -m scripts.dependencies
	@echo "Wrote out/sbom.cdx.json and the table in SECURITY.md."

wheel: $(READY) ## build a wheel and a source archive into dist/
	@mkdir -p dist
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 315532800) $(BIN)/python -c \
	  "from flit_core.buildapi import build_sdist, build_wheel; print('dist/' + build_wheel('dist'), 'dist/' + build_sdist('dist'))"

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-* dist .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(PEERS): benchmarks/peers/requirements.txt
	@echo "Setting up .venv-peers with the peers' packages (a minute or two, once) ..."
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r benchmarks/peers/requirements.txt || { \
	  echo "Installing the peers' packages failed: is a package index reachable from here?"; exit 1; }
	@touch $(PEERS)

$(LITELLM): tests/clients/litellm/requirements.txt pyproject.toml
	@echo "Setting up .venv-litellm with the LiteLLM proxy (some 600 MB, a minute or two, once) ..."
	@$(PYTHON) -m venv .venv-litellm
	@.venv-litellm/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r tests/clients/litellm/requirements.txt || { \
	  echo "Installing the LiteLLM proxy failed: is a package index reachable from here?"; exit 1; }
	@.venv-litellm/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(LITELLM)

$(SBOM): scripts/requirements-sbom.txt
	@echo "Setting up .venv-sbom with uv and CycloneDX's tool (a few seconds, once) ..."
	@$(PYTHON) -m venv .venv-sbom
	@.venv-sbom/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r scripts/requirements-sbom.txt || { \
	  echo "Installing the tools failed: is a package index reachable from here?"; exit 1; }
	@touch $(SBOM)

$(FUZZ): tests/fuzz/requirements.txt
	@echo "Setting up .venv-fuzz with the fuzzer (half a minute, once) ..."
	@$(PYTHON) -m venv .venv-fuzz
	@.venv-fuzz/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r tests/fuzz/requirements.txt || { \
	  echo "Installing the fuzzer failed. Is a package index reachable from here? atheris has wheels for Linux on x86-64."; exit 1; }
	@touch $(FUZZ)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "cachemw needs Python 3.11 or newer, and '$(PYTHON)' is not. Install one, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (about a minute, once) ..."
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module failed. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock || { \
	  echo "Installing the pinned packages failed: is a package index reachable from here?"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
