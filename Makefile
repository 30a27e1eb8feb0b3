# Two commands are all that a fresh machine needs: make demo, make test.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PROTOS := $(wildcard protocol/blindsight/v1/*.proto)

.PHONY: help demo test fuzz check stubs lock clean

help:  ## Show what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: $(BIN)/.run  ## Train, index and search a small federation; ends with demo/report.html
	$(BIN)/blindsight simulate --out demo

test: $(BIN)/.dev  ## Run all tests
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

fuzz: $(BIN)/.dev  ## Fuzz every decoder of foreign bytes for FUZZ_SECONDS (60)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),60)

check: $(BIN)/.dev  ## Lint, types, architecture, fresh stubs, docs in step
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/protocol/test_schema.py tests/test_docs.py

stubs: $(BIN)/.dev  ## Regenerate the gRPC stubs from the .proto files
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I. --python_out=. \
	  --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)

lock: $(BIN)/.dev  ## Resolve all dependencies anew into constraints.txt
	$(BIN)/uv pip compile -q --no-annotate --no-header --no-emit-index-url --extra dev \
	  pyproject.toml -o constraints.txt

clean:  ## Remove the environment and everything that was built
	rm -rf $(VENV) demo runs dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || \
	  ($(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV))

$(BIN)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(BIN)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $(BIN)/.run $@
