# Two commands do everything: `make demo` and `make test`.
export OMP_WAIT_POLICY ?= PASSIVE
PYTHON   ?= python3
VENV     ?= .venv
PIP_ARGS ?= -c constraints.txt
PY = $(VENV)/bin/python

demo: $(VENV)/.ok
	$(PY) -m testtime demo

test: $(VENV)/.ok
	$(PY) -m pytest -n auto --dist loadfile

check: $(VENV)/.ok
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

slow: $(VENV)/.ok
	$(PY) -m pytest -m slow --timeout 3600

$(VENV)/.ok: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q $(PIP_ARGS) -e '.[dev]'
	touch $@

.PHONY: demo test check slow
