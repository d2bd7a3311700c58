# make run: a picture from Japanese text · make test: lint and tests · each sets up .venv first if it has to
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test test-notebooks lint bench-mame bench-merge bench-speed bench-prompt bench-t2i wheel clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	@touch $@

run: setup
	@mkdir -p out
	$(BIN)/jpgen generate "夕焼けの海に浮かぶ赤い船" -o out/ship.png
	@echo "できました / your picture: $(CURDIR)/out/ship.png"

test: lint
	$(BIN)/python -m pytest -m "not slow and not network and not gpu and not notebooks"
	$(MAKE) test-notebooks

test-notebooks: setup
	$(BIN)/python -m pytest -m notebooks tests/test_notebooks.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy jpgen demo
	$(BIN)/lint-imports

bench-mame bench-merge bench-speed bench-prompt bench-t2i: setup
	$(BIN)/python -m jpgen.evaluate.$(subst -,_,$@)

wheel: setup
	$(BIN)/python -m build --wheel

clean:  # everything make has made but your pictures in out/
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
