# Two commands for a fresh clone with nothing installed but Python: `make demo` and `make test`. `make docs` builds the site.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

LOWEST := .venv-lowest
# What the lowest versions are for: the mathematics, the layer and the models, with timm's contract, the shipped weights and all
# methods of saving; and training, interrupted and resumed. Left out is what fails there: Triton 3.3 (its interpreter warns of
# numpy, its compiler spills), devices that are not there (torch 2.7 crashes), and by name torch.export with a free batch or size, how often compiled code is compiled and
# how its output lies in memory, the type of an error of torch.export's, and a warning of distributed checkpoints.
LOWEST_TESTS := tests/ssm tests/conv tests/ops tests/nn tests/models \
	$(addprefix tests/train/,test_engine.py test_optim.py test_initial.py test_checkpoint.py test_schedules.py) \
	$(addprefix tests/train/data/,test_resized.py test_noisy.py test_attributes.py)
WITHOUT := --ignore-glob=*test_triton*.py --ignore-glob=*test_fused*.py --ignore-glob=*test_on_cuda.py
NEWER := can_be_exported or (any_batch and export) or lies_in_memory or compiled_once_for_all_sizes or nothing_tells or DCP

.PHONY: demo test lowest lint types docs

# Train on photographs at 16 x 16, then see what is left at 16 to 64: S4ND beside its convolutional twin.
demo: .venv/demo.stamp
	rm -rf $(DEMO)
	$(MAKE) -j 2 $(DEMO)/s4nd_iso_tiny/last.safetensors $(DEMO)/conv_iso_tiny/last.safetensors
	$(BIN)/s4nd eval $(DEMO)/s4nd_iso_tiny/last.safetensors $(DEMO)/conv_iso_tiny/last.safetensors --sizes 16 24 32 48 64 --control --batch-size 16

# Side by side, a thread each: threads of one process wait for each other, the more the busier the machine is.
$(DEMO)/%/last.safetensors:
	OMP_NUM_THREADS=1 $(BIN)/s4nd train configs/photos/$*.yaml out=$(DEMO)/$*

# Two processes of one thread each: the tests are many small computations, and torch's threads would only wait for each other.
test: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

# With the lowest versions that setup.py allows, in an environment of their own. Tests of optional packages skip there.
lowest: $(LOWEST)/stamp
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -q $(WITHOUT) -k "not ($(NEWER))" $(LOWEST_TESTS)

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test.stamp
	$(BIN)/mypy

# The site, in site/: a warning is an error. (With --quiet mkdocs counts no warnings.)
docs: .venv/docs.stamp
	$(BIN)/python -m mkdocs build --strict

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The stamps are as new as the last installation, so a second call installs nothing.
.venv/demo.stamp: setup.py pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[demo]"
	touch $@

.venv/test.stamp: setup.py pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[demo,dev]"
	touch $@ .venv/demo.stamp

.venv/docs.stamp: setup.py pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[docs]"
	touch $@

$(LOWEST)/stamp: setup.py tools/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tools/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c $(LOWEST)/constraints.txt -e . pytest pytest-xdist hypothesis
	touch $@
