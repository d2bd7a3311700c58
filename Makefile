# make run: a picture from Japanese text · make test: lint and tests · each sets up .venv first if it has to
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run demo test test-browser test-notebooks test-slow bench-demo lint bench-mame bench-merge bench-speed bench-prompt bench-t2i bench-translate bench-pairing wheel clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	@touch $@

run: setup
	@mkdir -p out
	$(BIN)/jpgen generate "夕焼けの海に浮かぶ赤い船" -o out/ship.png
	@echo "できました / your picture: $(CURDIR)/out/ship.png"

demo: setup
	$(BIN)/jpgen demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow and not network and not gpu and not browser and not notebooks"
	$(MAKE) test-browser
	$(MAKE) test-notebooks

test-browser: setup  # the demo in a real Chromium; generous time-outs, nothing waits for a clock
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy chromium fonts-noto-cjk; } \
	  || { echo "chromium がありません / wanted: apt-get install chromium fonts-noto-cjk"; exit 1; }
	$(BIN)/python -m pytest -m browser tests/browser

bench-demo: setup  # memory during half an hour of three sessions (MINUTES=3: shorter)
	$(BIN)/python -m tests.browser.bench_demo $(or $(MINUTES),30)

test-notebooks: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m notebooks tests/test_notebooks.py

test-slow: setup  # what takes minutes, up to 14 GB of memory; not a part of test
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy jpgen demo
	$(BIN)/lint-imports

bench-mame bench-merge bench-speed bench-prompt bench-t2i bench-translate bench-pairing: setup
	$(BIN)/python -m jpgen.evaluate.$(subst -,_,$@)

wheel: setup
	$(BIN)/python -m build --wheel

clean:  # everything make has made but your pictures in out/
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
