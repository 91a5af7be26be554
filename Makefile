# Lakemesh: every target sets up .venv when it is missing or stale (tools/environment.py).
# Variables: PORT=8000  T=tests/server  TESTS=pattern  PYTHON=python3.12  UPGRADE=1 (lock)

PYTHON ?= python3
PORT ?= 8000
T ?= tests
TESTS ?=
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run test bench demo train lint types generate check-generated contract conformance \
  package lock reformat clean env-local env-dev tree protos

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# What other targets stand on.
env-local:
	@$(PYTHON) tools/environment.py local

env-dev:
	@$(PYTHON) tools/environment.py dev

tree: env-dev
	@$(BIN)/python tools/type_tree.py

protos: env-dev
	@$(BIN)/python tools/third_party_protos.py

run: env-local ## Start the server with embedded defaults (PORT=8000)
	exec $(BIN)/lakemesh serve --port $(PORT)

test: env-dev ## Run every test (T=path TESTS=pattern)
	$(PYTEST) $(T) $(if $(TESTS),-k "$(TESTS)")

contract: env-dev ## Run the contract tests: the public wire, over every transport
	$(PYTEST) tests/contract $(if $(TESTS),-k "$(TESTS)")

conformance: env-dev ## Run outside judges: gRPC interop with grpcio and Go, HTTP/2 cases
	$(PYTEST) tests/interop tests/h2 $(if $(TESTS),-k "$(TESTS)")

bench: env-dev ## Print the benchmark table
	$(BIN)/python -m benchmarks

demo: env-dev ## Score real transactions through a running or freshly started server
	$(BIN)/python -m lakemesh.jobs.demo

train: env-dev ## Train the fraud scorer's weights from the simulator's transactions
	$(BIN)/python -m lakemesh.jobs.train_fraud

lint: tree protos ## Style, imports, protos (buf lint, format, breaking), Go
	@$(BIN)/python tools/lint.py

types: tree ## Type-check everything, strictly
	$(BIN)/mypy -p lakemesh
	$(BIN)/mypy tools app.py
	$(BIN)/mypy tests

generate: env-dev ## Make gen/ from proto/
	@$(BIN)/python tools/generate.py

check-generated: env-dev ## Fail when gen/ is stale
	@$(BIN)/python tools/generate.py --check

package: env-dev ## Build the wheel into dist/ and test it in fresh environments
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist
	$(PYTEST) tests/repository/test_packaging.py

lock: env-dev ## Resolve the dependencies into requirements*.txt (UPGRADE=1 for newer ones)
	@$(BIN)/python tools/lock.py $(if $(UPGRADE),--upgrade)

reformat: env-dev ## Lay out Python, protos and Go as `make lint` wants them
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/buf format --write proto
	git ls-files -co --exclude-standard '*.go' ':!gen/' | xargs -r gofmt -w

clean: ## Remove what was built; .venv and .lakemesh (the data) stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
