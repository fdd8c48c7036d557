# Every target makes the environment that it needs, once; see `.ci/setup`.
PYTHON ?= python3
PORT ?= 8000
WORKSPACE ?= workspace
ARGS ?=

BIN := .venv/bin
SETUP = @$(PYTHON) .ci/setup

.PHONY: serve test check format bench docs test-clients test-docker clean

serve:  ## The service with a trained demo model: PORT=9000, WORKSPACE=dir
	$(SETUP) .venv cpu,train
	@exec $(BIN)/specnorm serve --demo --workspace "$(WORKSPACE)" --port "$(PORT)" $(ARGS)

test:  ## Every test that needs no more than the extra `test`: ARGS="-k name"
	$(SETUP) .venv cpu,train,test
	$(BIN)/python -m pytest $(ARGS)

check:  ## Format, lint, types, import contracts
	$(SETUP) .venv cpu,train,test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format:  ## Rewrite what `check` would complain of and can be mended
	$(SETUP) .venv cpu,train,test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove every environment and cache; workspaces stay
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
