# `make demo` and `make test` do all the set-up on a fresh machine: what they install goes into .venv, what the demo
# writes into build/demo (in results/ its cells are already finished, and would only be printed).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint locked clean

.venv/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.run
	$(BIN)/evalkit run -m model=bm25,demo results_dir=build/demo/results cache_dir=build/demo/cache

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The same versions, each file held against its checksum in requirements.lock; nothing is fetched without one.
locked:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
