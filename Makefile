# Every target sets up what it needs, in .venv, from the tested versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
LOWEST_CORE := compiled dm-control export mujoco offline plots tests
# The quick start: `make train ALGO=bn_td3 ENV=MountainCarContinuous-v0 STEPS=30000 SEED=1`
ALGO ?= bn_ddpg
ENV ?= Pendulum-v1
STEPS ?= 12000
SEED ?= 0

# The speed benchmark: quick, processor, full or gpu
SPEED := benchmarks/speed
OFFLINE := benchmarks/offline
PROFILE ?= quick

.PHONY: help train test test-kernels test-lowest check docs format constraints bench-speed bench-offline bench-offline-speed bench-learning clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

train: $(VENV)/ready-to-train ## Train on Pendulum-v1, evaluate beside a random policy, save the model and the learning curve
	$(BIN)/python docs/examples/quickstart.py --algo $(ALGO) --env $(ENV) --timesteps $(STEPS) --seed $(SEED)

# One torch thread a worker: more only wait for each other. `make test ARGS="-k noise"` runs a part.
# Groups (tests/conftest.py): one worker compiles, and what a file prepares is prepared once. A worker that dies ends the run:
# with another in its place pytest-xdist may wait for ever.
PYTEST := -m pytest -n auto --dist loadgroup --max-worker-restart 0
test: $(VENV)/ready-to-test ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) $(ARGS)

# RL Zoo asks for a newer SB3 than the rest, so its lowest versions are a second set. The sets are for Python 3.10 and 3.11.
test-lowest: $(LOWEST)/core/ready $(LOWEST)/zoo/ready ## Run the tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(LOWEST)/core/bin/python $(PYTEST) $(ARGS)
	OMP_NUM_THREADS=1 $(LOWEST)/zoo/bin/python $(PYTEST) $(ARGS)

# What two ways of calculating give must agree with any processor's kernels: once more with those of older ones
test-kernels: $(VENV)/ready-to-test ## Run the numerical comparisons with the kernels of other processors
	OMP_NUM_THREADS=1 $(BIN)/python tests/kernel_sets.py -m numerics $(ARGS)

check: $(VENV)/ready-to-test ## Formatting, lint and types; fails on any finding
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/ready-to-test ## Build the documentation into docs/_build; warnings are errors
	$(BIN)/python docs/figures/architecture.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

format: $(VENV)/ready-to-test ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(VENV)/ready-to-test ## Renew the tested versions, newest and lowest (CUDA packages follow from torch's own)
	$(BIN)/pip install uv
	echo "torch==2.13.0" | $(call compile,--all-extras --universal --upgrade --constraint -,constraints.txt)
	$(call compile,$(LOWEST_CORE:%=--extra %) --python-platform linux --resolution lowest-direct,constraints-lowest-core.txt)
	$(call compile,--all-extras --python-platform linux --resolution lowest-direct,constraints-lowest-zoo.txt)

define compile
$(BIN)/uv pip compile pyproject.toml --python-version 3.10 --no-header --no-annotate --no-emit-index-url $(1) \
		| grep -vE '^(nvidia|cuda|triton)' > constraints.new
	mv constraints.new $(2)
endef

bench-speed: $(VENV)/ready-to-test $(SPEED)/envs/jax/ready $(SPEED)/envs/tianshou/ready ## Speed beside the peers (PROFILE=processor: twenty minutes, full: forty)
	$(BIN)/python -m benchmarks.speed.run --profile $(PROFILE) $(ARGS)

# Also builds the environment in which tests/test_offline_peers.py runs d3rlpy
bench-offline-speed: $(VENV)/ready-to-test $(OFFLINE)/envs/d3rlpy/ready ## Gradient steps a second of IQL and TD3+BC beside d3rlpy's
	$(BIN)/python -m benchmarks.offline.speed $(ARGS)

bench-offline: $(VENV)/ready-to-test $(OFFLINE)/envs/d3rlpy/ready ## Offline results beside d3rlpy's: run what is missing, draw everything anew
	$(BIN)/python -m benchmarks.learning.run --group random_offline offline offline_bcq offline_awac offline_changes $(ARGS)

# `make bench-learning ARGS="--group peers --workers 2"`, `ARGS="--ray auto"`; with everything stored it only draws
bench-learning: $(VENV)/ready-to-test ## Returns beside the peers and the ablations: run what is missing, draw everything anew
	$(BIN)/python -m benchmarks.learning.run $(ARGS)

$(SPEED)/envs/jax/ready: constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet torch==2.13.0
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt sbx-rl==0.28.0 "gymnasium[mujoco]" psutil
	touch $@

# Tianshou asks for an older pandas than ours: only what decides the speed is held to the tested versions
$(SPEED)/envs/tianshou/ready: constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep -E '^(gymnasium|mujoco|numpy|torch)==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet torch==2.13.0
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt tianshou==2.0.1 "gymnasium[mujoco]" psutil
	touch $@

# d3rlpy asks for an older Gymnasium than ours: only PyTorch and NumPy, which decide the speed, are the tested versions
$(OFFLINE)/envs/d3rlpy/ready: constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep -E '^(numpy|torch)==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet torch==2.13.0
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt d3rlpy==2.8.1
	touch $@

clean: ## Remove the environments and every cache
	rm -rf $(VENV) $(LOWEST) $(OFFLINE)/envs $(SPEED)/envs .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info

$(VENV)/ready-to-train: EXTRAS := plots
$(VENV)/ready-to-test: EXTRAS := bench,compiled,distributed,dm-control,docs,export,mujoco,offline,plots,tests,zoo

$(VENV)/ready-to-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name it by: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

$(LOWEST)/core/ready: EXTRAS := $(LOWEST_CORE)
$(LOWEST)/zoo/ready: EXTRAS := $(LOWEST_CORE) bench distributed docs zoo

$(LOWEST)/%/ready: pyproject.toml constraints-lowest-%.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11)])' || \
		{ echo "The lowest versions are for Python 3.10 and 3.11; name it by: make PYTHON=python3.10 test-lowest"; exit 1; }
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --constraint constraints-lowest-$*.txt --editable ".[$$(echo $(EXTRAS) | tr ' ' ,)]"
	touch $@
