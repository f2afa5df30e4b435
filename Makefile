# Two commands do everything: `make demo` and `make test`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q install

.PHONY: demo test test-vm fidelity check bench bench-peers clean

demo: $(VENV)/installed
	$(BIN)/nsorch run examples/office.toml --check

# Root runs them on asyncio, an ordinary user on trio: a plain pytest runs both backends.
test: $(VENV)/tests
	@$(BIN)/python -m compileall -q nsorch tests
	@if [ "$$(id -u)" != 0 ]; then exec $(BIN)/python -m pytest -q; fi; status=0; \
	$(BIN)/python -m pytest -q --one-backend || status=$$?; sh tests/as_user.sh || status=$$?; exit $$status

# The tests marked vm, under Debian's kernels in a virtual machine: docs/vm-tier.md.
test-vm: $(VENV)/tests
	@tests/vm/run.sh

# How truly links are emulated, as a table, there too.
fidelity: $(VENV)/tests
	@VM_COMMAND="-m bench.fidelity" VM_USERS=root VM_KERNELS=$${VM_KERNELS:-6.1} tests/vm/run.sh

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m bench

# The other tools of row 16: Debian's packages are only unpacked, nothing of the system is changed.
bench-peers: $(VENV)/installed
	mkdir -p .peers/debian
	cd .peers && apt-get download mininet bridge-utils net-tools && \
		for package in *.deb; do dpkg -x "$$package" debian && rm "$$package"; done
	/usr/bin/python3 -m venv --without-pip .peers/venv
	$(BIN)/python -m pip --disable-pip-version-check -q --python .peers/venv/bin/python install munet
	@command -v pgrep >/dev/null || echo "munet also needs pgrep, of the package procps"

clean:
	rm -rf $(VENV) .vm .peers .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "nsorch needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/tests: $(VENV)/installed
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/dev: $(VENV)/tests
	$(PIP) -e ".[dev]"
	@touch $@
