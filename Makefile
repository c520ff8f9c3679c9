# make demo   the main job on a live process, end to end
# make test   lint, types, package order, tests
# make lint   only the first three
# make bench  every benchmark, JSON into build/bench
# make clean  removes everything that was made, .venv included
#
# PYTHON=/path/to/python3 chooses the interpreter of .venv.

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
# What the installed package is made from; Python sources are used in place (editable install).
SOURCES := pyproject.toml hatch_build.py $(wildcard native/*.py native/include/*.h native/src/*.c native/src/*.h)
BENCHES := uprobe attach footprint

.PHONY: demo test lint bench install install-test clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest

lint: install-test
	$(BIN)/ruff check src tests bench examples native hatch_build.py
	$(BIN)/ruff format --check src tests bench examples native hatch_build.py
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_dependency_order.py tests/test_style.py

bench: install
	mkdir -p build/bench
	set -e; for name in $(BENCHES); do \
		$(BIN)/python bench/$$name.py --json > build/bench/$$name.json; \
		echo "build/bench/$$name.json"; cat build/bench/$$name.json; \
	done

install: .venv/.installed
install-test: .venv/.installed-test

.venv/.created:
	.ci/make-venv .venv
	touch $@

.venv/.installed: .venv/.created $(SOURCES)
	@echo "installing userbpf into .venv (compilers come from PyPI: the first time takes a minute or two)"
	$(PIP) --editable .
	touch $@

.venv/.installed-test: .venv/.created $(SOURCES)
	@echo "installing userbpf and what its tests need into .venv (the first time takes a minute or two)"
	$(PIP) --editable '.[test]'
	touch .venv/.installed $@

clean:
	rm -rf .venv build dist src/userbpf/native/lib .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
