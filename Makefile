# Targets: demo, test, check, bench, gpu. Each makes its environment by itself; TORCH=torch==2.14.1
# chooses the torch to install, in an environment of its own, PYTHON=python3.13 the Python.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# for a torch that brings none; 3.6 to 3.9 work, 3.7.1 is the one whose machine code is checked
TRITON ?= $(if $(filter Linux,$(shell uname)),triton==3.7.1,pip)
VENV ?= .venv$(if $(filter-out torch==2.13.0,$(TORCH)),-$(subst =,,$(TORCH)))
BIN := $(VENV)/bin
# peers are installed without their pins, which would drag torchvision and an old numpy in
PEERS := torchattacks==3.5.1 foolbox==3.3.4 eagerpy==0.30.0 adversarial-robustness-toolbox==1.20.1
PEERS_NEED := GitPython requests scikit-learn six tqdm
# what examples/ run in, with only what they import of their needs: none may replace torch
LOOPS := accelerate==1.15.0 lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0
LOOPS_NEED := PyYAML safetensors

.PHONY: demo test check bench gpu clean

demo: $(VENV)/.demo
	$(BIN)/python -m fastadv demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tests/typing/completeness.py
	$(BIN)/python -m pytest tests/test_floors.py
	$(BIN)/python -m benchmarks.harness.report --check

bench: $(VENV)/.dev
	@echo "about 6 minutes on two idle cores: ops, then whole attacks; rows go to bench-output/, which git ignores"
	$(BIN)/python -m pytest benchmarks
	$(BIN)/python -m benchmarks.attacks

# on a GPU machine, with the torch that is there: make gpu TORCH=torch
gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu --out gpu-output

clean:
	rm -rf .venv .venv-torch* build dist demo-output bench-output gpu-output

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "fastadv needs Python 3.11 or later: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install --quiet $(TRITON)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet -e ".[cli,plot,cpu]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo pyproject.toml
	$(BIN)/pip install --quiet -e ".[dev]"
	$(BIN)/pip install --quiet $(PEERS_NEED) $(LOOPS_NEED)
	$(BIN)/pip install --quiet --no-deps $(PEERS) $(LOOPS)
	touch $@
