# Two commands for a fresh clone: `make demo` and `make test`. Each makes $(VENV) when it is missing.
PYTHON ?= python3
VENV ?= .venv
OUT ?= pt2q-demo
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile

# Programs of benchmarks/ that measure; the others are what they share.
BENCHMARKS ?= pipeline command observers qat xnnpack xnnpack_peer decoder other_quantizers roads \
	accuracy scoreboard distributed checkpoint_decoder

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# Spinning threads beside a busy neighbour cost more than they win.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test test-slow lint typecheck installed-copy format docs pages bench \
	bench-quick dist clean

help:
	@echo "make demo       quantize the bundled digits network and compare it with float"
	@echo "make test       run the tests"
	@echo "make test-slow  run the slow tests"
	@echo "make lint       ruff, copied code, the order of the rooms"
	@echo "make typecheck  mypy on an installed copy"
	@echo "make format     let ruff rewrite what it can"
	@echo "make docs       build the documentation site in build/site"
	@echo "make pages      write again what programs write in docs/"
	@echo "make bench-quick  is this change slower? two minutes before it, two minutes after"
	@echo "make bench      every benchmark, and the page of them; hours"
	@echo "make dist       build and check what is published, in dist/"

demo: $(VENV)/.pt2q-demo
	$(BIN)/python -m pt2q demo --out $(OUT)

test: $(VENV)/.pt2q-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(VENV)/.pt2q-test
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m slow

lint: $(VENV)/.pt2q-lint installed-copy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pylint pt2q passes quantizers tests benchmarks examples
	$(BIN)/python .ci/one_emitter.py
	$(BIN)/python .ci/torch_private.py
	cd "$(VENV)/typed" && PYTHONPATH=. "$(abspath $(BIN))/lint-imports" --no-cache --config "$(CURDIR)/pyproject.toml"

format: $(VENV)/.pt2q-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/.pt2q-lint $(VENV)/.pt2q-test installed-copy
	MYPYPATH="$(VENV)/typed" $(BIN)/mypy -p pt2q

# Strict: a broken link, a page without a place or a docstring that does not fit its signature fails.
docs: $(VENV)/.pt2q-docs installed-copy
	NO_MKDOCS_2_WARNING=1 PT2Q_INSTALLED_COPY="$(abspath $(VENV))/typed" $(BIN)/mkdocs build --strict

pages: $(VENV)/.pt2q-torch
	$(BIN)/python docs/error_catalogue.py
	$(BIN)/python docs/rooms.py
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/migrating.py
	$(BIN)/python benchmarks/overview.py

bench-quick: $(VENV)/.pt2q-test
	$(BIN)/python benchmarks/quick.py

bench: $(VENV)/.pt2q-test $(VENV)/.pt2q-examples
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/overview.py
	$(BIN)/python benchmarks/pictures.py

dist: $(VENV)/.pt2q-dist
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# As users get it: neither mypy nor the import linter see through the finder of an editable install.
installed-copy: $(VENV)/.pt2q-torch
	rm -rf build/lib "$(VENV)/typed"
	$(PIP) install --quiet --no-deps --target "$(VENV)/typed" .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch goes in by itself and first, so that no later pip call can resolve another one.
$(VENV)/.pt2q-torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	touch $@

$(VENV)/.pt2q-%: $(VENV)/.pt2q-torch pyproject.toml
	$(PIP) install --quiet -c constraints.txt -e ".[$*]"
	touch $@

# TOSA's tools ask for an ml_dtypes older than onnx does; the newer one serves both.
$(VENV)/.pt2q-test: $(VENV)/.pt2q-torch pyproject.toml constraints.txt
	$(PIP) install --quiet -c constraints.txt -e ".[test]"
	$(PIP) install --quiet --no-deps tosa-tools==2026.5.0
	touch $@

.PRECIOUS: $(VENV)/.pt2q-%
