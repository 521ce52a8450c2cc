# Two commands do everything, `make demo` and `make test`; `make docs` builds the documentation into site/.
export OMP_WAIT_POLICY ?= PASSIVE
# Keep compiled modules also where the environment forbids it: the tests start many processes, which compile them again otherwise.
export PYTHONDONTWRITEBYTECODE =
VENV     ?= .venv
PIP_ARGS ?= -c constraints.txt
ifeq ($(OS),Windows_NT)
PYTHON   ?= python
PY = $(VENV)/Scripts/python
else
PYTHON   ?= python3
PY = $(VENV)/bin/python
endif

demo: $(VENV)/.ok
	$(PY) -m testtime demo

serve: $(VENV)/.ok
	$(PY) -m testtime serve --demo

test: $(VENV)/.ok
	$(PY) -m pytest -n auto --dist loadfile

check: $(VENV)/.ok
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(VENV)/.ok
	$(PY) scripts/method_pages.py
	$(PY) scripts/example_pages.py
	$(PY) -m mkdocs build --strict
	$(PY) scripts/check_site.py site

slow: $(VENV)/.ok
	$(PY) -m pytest -m slow --timeout 3600

$(VENV)/.ok: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q $(PIP_ARGS) -e ".[dev]"
	$(PY) -c "import pathlib; pathlib.Path('$@').touch()"

.PHONY: demo serve test check docs slow
