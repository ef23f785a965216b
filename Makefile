# Two commands do it all: `make demo` and `make test`. Both install what is missing into .venv first.

PYTHON ?= python3
# Where torch's CPU build comes from. Plain PyPI serves the CUDA build, gigabytes of it; name PyTorch's index of CPU
# wheels here (or a folder with the wheel, TORCH_OPTIONS="--find-links FOLDER") unless pip is set up to find one.
TORCH_INDEX_URL ?=
TORCH_OPTIONS ?= $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))
DEMO ?= demo
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile

.PHONY: help install system demo motion test test-all lint bench constraints clean

help:
	@echo "make demo      set up, then render clips, prepare them, train both streams, write a report page"
	@echo "make motion    the paper's five architectures and its transfer on rendered clips: hours on two cores"
	@echo "make test      set up and run the tests (minutes); make test-all adds the slow ones"
	@echo "make lint      ruff, mypy, what lies in docker/, the direction of imports"
	@echo "make bench     measure against named alternatives; CLIPS=\"a.mp4 b.mp4\" for the coding of flow"
	@echo "make install   set up only: .venv with pinned versions; system packages when missing"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt | system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) --constraint constraints.txt $(TORCH_OPTIONS) torch
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

system:
	@sh .ci/system-packages

demo: install
	$(BIN)/python -m tests.demo --output $(DEMO) --seed $(SEED)

motion: install
	$(BIN)/python -m tests.motion

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/*.sh .ci/run .ci/system-packages
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.cloudbuild docker/cloudbuild.yaml
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: install
	$(BIN)/python -m tests.bench $(CLIPS)

constraints:
	@command -v uv >/dev/null || { echo "make constraints needs uv (pip install uv)"; exit 1; }
	(sed '/^[^#]/,$$d' constraints.txt; echo torch==2.13.0 > build-torch.txt; \
	  uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-header --no-annotate \
	  --constraint build-torch.txt pyproject.toml | grep -vE '^(nvidia|cuda)') > constraints.new
	rm build-torch.txt && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(DEMO) motion build *.egg-info .mypy_cache .pytest_cache .ruff_cache
