# make setup  sets up, and runs nothing
# make demo   sets up and runs the main job on real data, and shows the table
# make test   sets up, checks, builds the documentation and passes the tests
# make docs   builds the documentation into site/; any warning is an error
# Everything happens in .venv, which the targets build themselves. JOBS: processes of tests; those
# with SLURM clusters mostly wait.

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 4

.PHONY: setup demo test check docs format mutants clean

setup: .venv/ready

demo: .venv/ready
	$(BIN)/fewstep sweep digits

# the processes that tests start, thousands, need not compile fewstep each
test: export PYTHONDONTWRITEBYTECODE =
test: check docs
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy docs/tools
	$(BIN)/lint-imports --no-cache

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# puts faults into the objectives, one by one, and shows that the tests find each (long)
mutants: .venv/ready
	$(BIN)/python tests/mutants/run.py --jobs $(JOBS)

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch-fidelity without torchvision, which its Inception does not need: PyPI's is built for CUDA, and
# beside a CPU-only torch it breaks itself and transformers
# torch comes first and pinned: any looser requirement may fetch gigabytes of CUDA libraries
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torch-fidelity
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info src/*.egg-info
