PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp

# Names the folder it was made in: a .venv that was moved, whose interpreter is gone,
# or whose set-up was interrupted is not intact and is made anew.
intact := $(shell $(BIN)/python -c "import pip" 2>/dev/null && cat $(STAMP) 2>/dev/null)
ifneq ($(intact),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help setup app test lint test-slow test-gpu nano

help:
	@echo "make setup      make .venv from requirements.lock (every target below does this first)"
	@echo "make app        serve the web page on http://127.0.0.1:7860 with the bundled model"
	@echo "make test       lint, types, secret scan and the fast tests"
	@echo "make test-slow  the slow tests: browser, kill tests, wide checkpoints"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make nano       retrain the bundled model from ../shared/data (hours on a CPU, resumable)"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { \
	    echo "mm-rwkv7 needs Python 3.11 to 3.14, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Name another one: make PYTHON=python3.12 $(or $(MAKECMDGOALS),setup)" >&2; exit 1; }
ifneq ($(intact),$(CURDIR))
	$(PYTHON) -m venv --clear .venv
endif
	@rm -f $@
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo "$(CURDIR)" > $@

app: $(STAMP)
	$(BIN)/mm-rwkv7 app

test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find . \( -name .git -o -name .venv -o -name '.*_cache' -o -name .hypothesis -o -name runs \) -prune \
	    -o -type f ! -name '*.safetensors' -exec $(BIN)/detect-secrets-hook {} +

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

nano: $(STAMP)
	$(BIN)/python -m training nano --data ../shared/data
