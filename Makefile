# Everything runs in a virtual environment that the first use makes: .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STATE ?= .state

.PHONY: run test lint bench soak fuzz guests stubs reference clean

# A daemon on loopback for trying things out: root's password is xenroot.
run: $(VENV)/run
	XAPI_ROOT_PASSWORD=xenroot $(BIN)/xapi --state $(STATE) $(ARGS)

# A file's tests run in one process, files side by side.
test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m xapi.tools.stubs --check

# Side-by-side figures; takes some minutes.
bench: $(VENV)/dev
	$(BIN)/python -m tests.benchmarks $(ARGS)

# The tests that kill, fill and wait, hundreds of times; and all that draw their cases, with cases of their own.
soak: $(VENV)/dev
	XAPI_KILLS=300 XAPI_CYCLES=2000 $(BIN)/python -m pytest --hypothesis-profile=random tests/durability $(ARGS)
	$(BIN)/python -m pytest --hypothesis-profile=random --numprocesses auto --dist loadfile $(ARGS)

# Hostile guests, for as many minutes as wanted: make fuzz MINUTES=60
fuzz: $(VENV)/dev
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) $(ARGS)

# The demo guest's kernel, from C and assembly; the built file is committed.
guests:
	$(MAKE) -C hypervisor/guests

stubs: $(VENV)/run
	$(BIN)/python -m xapi.tools.stubs

reference: $(VENV)/run
	$(BIN)/python -m xapi.reference --format html

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[postgresql]'
	touch $@

$(VENV)/dev: pyproject.toml $(VENV)/run
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[postgresql,dev]'
	touch $@
