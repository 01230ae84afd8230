# SPDX-License-Identifier: BSD-3-Clause
# The commands of people and of the CI. Every target first sets up what is missing or out of date; this is quick the second time.
#
#     make demo     rainbow networks of growing width from a trained one, in under a minute
#     make test     all tests but the slow ones      ARGS="-k polar" goes on to pytest, JOBS=0 is for its --pdb
#     make test-all all of them
#     make docs     the documentation site, in build/site; warnings are errors
#     make sanitize every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, those of CUDA under ThreadSanitizer
#     make clang    builds the kernels by clang and compares their bits with the usual build
#     make aarch64  cross-compiles the kernels for aarch64 and emulates them
#     make gpu-check  the kernels for GPUs compiled without one: registers, spills, tensor cores
#     make gpu-first-run  builds, tests, checks and times the kernels on a machine with a GPU, which may be bare
#     make gpu-wheels  the small packages that such a machine may lack, in build/wheels
#     make bench    the table of timings, and bench/results.json
#     make lint     ruff, mypy, clang-format     make format mends what can be mended
#     make clean    removes everything that make has made

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.8.0
VENV ?= .venv
ARGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
# Processes that share the tests, file by file; JOBS=0 runs them in this one. Threads that wait do not spin, for they would
# take the cores of the other process.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
CSRC := $(shell find csrc bench tests -name "*.cpp" -o -name "*.h" -o -name "*.cu")

.PHONY: setup demo test test-all docs sanitize clang aarch64 gpu-check gpu-first-run gpu-wheels bench bench-gpu lint format clean

setup: build/done

demo: setup
	$(BIN)/rainbow-fast demo $(ARGS)

test: setup
	$(PYTEST) -m "not slow" $(ARGS)

test-all: setup
	$(PYTEST) $(ARGS)

docs: setup $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

sanitize: $(VENV)/done
	RAINBOW_FAST_SANITIZE=1 $(BIN)/python setup.py --quiet build_ext
	$(BIN)/python tests/helpers/sanitize.py $(ARGS)
	$(BIN)/python tests/helpers/sanitize_order.py

# It needs clang++ and libomp (Debian: clang, libomp-dev).
clang: setup
	CXX="$${CLANG:-clang++}" RAINBOW_FAST_CUDA=0 RAINBOW_FAST_BUILD=build/clang $(BIN)/python setup.py --quiet build_ext
	$(BIN)/python tests/helpers/compare_builds.py build/clang/_C.so $(ARGS)

# It needs a cross-compiler and an emulator (Debian: g++-aarch64-linux-gnu, qemu-user).
aarch64: setup
	$(BIN)/python tests/helpers/aarch64.py $(ARGS)

gpu-check: setup
	$(BIN)/python tests/helpers/gpu_check_cuda.py $(ARGS)
	$(BIN)/python tests/helpers/gpu_check.py $(ARGS)

# It sets nothing up: it runs on a machine without a network, with the Python that has torch.
gpu-first-run:
	$(PYTHON) bench/gpu_first_run.py $(ARGS)

# For Python 3.12 on x86-64. Other packages would not fit: torch, Triton and nvcc must be there.
gpu-wheels:
	$(PYTHON) -m pip --disable-pip-version-check download --no-deps --only-binary=:all: --python-version 3.12 \
	    $(foreach n,17 24 27 28,--platform manylinux_2_$(n)_x86_64) --platform manylinux2014_x86_64 \
	    --constraint constraints.txt --dest build/wheels msgspec numpy safetensors pybind11 setuptools \
	    pytest pluggy iniconfig packaging pygments pytest-benchmark py-cpuinfo pytest-xdist execnet

bench: setup
	$(BIN)/python -m pytest bench --benchmark-json=bench/results.json $(ARGS)

bench-gpu: setup
	$(BIN)/python -m pytest bench/bench_gpu.py --benchmark-json=bench/results.json $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CSRC)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

clean:
	rm -rf $(VENV) build dist *.egg-info rainbow_fast/_C*.so bench/results.json
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch is installed first, by its version; nothing that is installed later may replace it. triton is installed next,
# without dependencies, to interpret, compile and read the GPU kernels. If TRITON is empty, the triton that torch brings
# stays.
$(VENV)/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH) setuptools pybind11
	$(if $(TRITON),$(PIP) --no-deps $(TRITON))
	$(PIP) --no-build-isolation --editable ".[cli,plots,data,analysis,dev,cuda]"
	touch $@

# Installs the packages that build the site, and nothing of this package: the extra "docs" names them.
$(VENV)/docs: $(VENV)/done
	$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

build/done: $(VENV)/done setup.py compilers.py $(CSRC)
	mkdir -p build && touch build/started
	$(BIN)/python setup.py --quiet build_ext --inplace
	mv build/started $@
