# Every target makes the environment that it needs, once: see `.ci/setup`.
PYTHON ?= python3
PORT ?= 8000
WORKSPACE ?= workspace
ARGS ?=

BIN := .venv/bin
SETUP = @$(PYTHON) .ci/setup

.PHONY: help serve test check format bench docs test-attack test-clients test-faults test-privacy test-gpu test-docker test-browser clean

help:  ## Say what there is to make
	@sed -n 's/^\([a-z-]*\):  ## /\1\t/p' Makefile | expand -t 16

serve:  ## The service with a trained demo model (PORT=9000 WORKSPACE=dir)
	$(SETUP) .venv cpu,train,privacy
	@exec $(BIN)/specnorm serve --demo --workspace "$(WORKSPACE)" --port "$(PORT)" $(ARGS)

test:  ## Every test that needs no more than Python packages (ARGS="-k name")
	$(SETUP) .venv cpu,train,test,privacy
	$(BIN)/python -m pytest --ignore tests/docker $(ARGS)

check:  ## Format, lint, types, import contracts
	$(SETUP) .venv cpu,train,test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format:  ## Mend what `check` would complain of, as far as a tool can
	$(SETUP) .venv cpu,train,test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench:  ## Requests per second over HTTP, the cost of the layers, of private training and of the bounds
	$(SETUP) .venv cpu,train,test,privacy
	$(BIN)/python bench/infer.py $(ARGS)
	$(BIN)/python bench/floor.py
	$(BIN)/python bench/processes.py
	$(BIN)/python bench/jobs.py
	$(BIN)/python bench/layers.py
	$(BIN)/python bench/privacy.py
	$(BIN)/python bench/bounds.py
	$(BIN)/python bench/audit_soundness.py

docs:  ## Write the reference pages that the code itself tells
	$(SETUP) .venv cpu,train
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/audit.py
	$(BIN)/python docs/jobs.py

test-clients:  ## The stock clients of both protocols against a real server
	$(SETUP) .venv cpu,train,test
	$(BIN)/python -m pytest tests/app/api $(ARGS)
	$(SETUP) .venv-clients clients
	KSERVE_PYTHON=.venv-clients/bin/python $(BIN)/python -m pytest tests/app/clients $(ARGS)

test-gpu:  ## Training and serving on a CUDA device: TORCH=cuda make test-gpu
	$(SETUP) $(if $(filter cuda,$(TORCH)),.venv-gpu gpu,.venv cpu),train,test
	$(if $(filter cuda,$(TORCH)),.venv-gpu/bin,$(BIN))/python -m pytest tests/gpu $(ARGS)

test-privacy:  ## Opacus on the spectral layers
	$(SETUP) .venv cpu,train,test,privacy
	$(BIN)/python -m pytest tests/privacy $(ARGS)

test-faults:  ## kill -9, full disks, jumping clocks and a database that is gone, at every place (minutes; Linux, root, strace, gcc, PostgreSQL)
	$(SETUP) .venv cpu,train,test
	$(BIN)/python -m pytest tests/faults/test_killed.py tests/faults/long $(ARGS)

test-attack:  ## Attack every preset within its certified radius: all inputs, several restarts (minutes)
	$(SETUP) .venv cpu,train,test
	ATTACK=long $(BIN)/python -m pytest -sv tests/export/test_attack.py $(ARGS)

test-docker:  ## Build, run and break the containers; needs Docker with Compose
	$(SETUP) .venv cpu,train,test
	$(BIN)/python -m pytest tests/docker $(ARGS)

test-browser:  ## The console in a real browser; needs Node.js 20 and Chromium (CHROMIUM=path SCREENSHOTS=dir)
	$(SETUP) .venv cpu,train
	npm install --prefix tests/browser --no-package-lock --no-audit --no-fund --silent
	node --test tests/browser/console.mjs

clean:  ## Remove the environment and the caches; workspaces stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
