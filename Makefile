# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help setup demo test test-ray-llm check coverage format soak docs clean
help:
	@echo "make demo   run the control plane before real traffic on a simulated GPU node (no GPU needed)"
	@echo "make test   every test     make check  style, types, layers     make soak  long campaigns"
	@echo "make docs   the documentation as pages in site/, openable from a file"
	@echo "make test-ray-llm   applications of ray.serve.llm for real, in an environment of their own (7 GB)"
	@echo "make coverage   of control_plane and serve_apps, by the tests that start no Ray"

setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar on -c constraints.txt -e '.[train,dev,docs]'
	@touch $@

demo: setup
	$(BIN)/wattray demo

# ray.serve.llm wants vLLM; torchvision and torchaudio are built for CUDA and clash with a torch for the CPU.
LLM := .venv-ray-llm
$(LLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LLM)
	$(LLM)/bin/python -m pip install --quiet --progress-bar on 'ray[llm,serve]==2.60.0' -e '.[transformers]' \
		'pytest>=8.3' 'pytest-timeout>=2.3' 'hypothesis>=6.120'
	$(LLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	@touch $@

test-ray-llm: $(LLM)/.installed
	$(LLM)/bin/python -m pytest tests/ray_llm

# Tests that start Ray mostly wait; the others, at low priority, use the second core meanwhile. A third lane was tried: two
# Rays that start at once starve everything, and nothing ends sooner.
test: setup
	@nice -n 10 $(BIN)/python -m pytest -m "not soak and not ray" > .pytest-without-ray.log 2>&1 & others=$$!; \
	trap "kill $$others" INT TERM; \
	$(BIN)/python -m pytest -m "ray and not soak"; with_ray=$$?; \
	wait $$others; without_ray=$$?; cat .pytest-without-ray.log; exit $$((with_ray || without_ray))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: setup
	$(BIN)/python -m pytest -m "not soak and not ray" --cov=control_plane --cov=serve_apps --cov-report=term:skip-covered

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: setup
	$(BIN)/python -m pytest -m soak --timeout 7200 -s

docs: setup
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(LLM) .pytest-*.log demo-report site build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
