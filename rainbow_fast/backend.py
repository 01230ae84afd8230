# SPDX-License-Identifier: BSD-3-Clause
"""Chooses the backend of an op: compiled ``"cpu"``, ``"cuda"`` or ``"triton"`` kernels, or ``"reference"`` (torch).

`isa` is the instruction-set level of the CPU kernels in use. By default it is the highest level that this build
contains and this machine supports. The environment variable ``RAINBOW_FAST_ISA`` (``baseline``, ``avx2``, ``avx512``,
``avx512_bf16``, ``amx``) chooses another one; it is read once, when the package is imported. If it names a level that
this build or this machine does not have, `check_isa` and every op raise ImportError. ``amx`` multiplies float32 and
bfloat16 matrices on the matrix unit of Intel CPUs; ``amx_emulated`` gives the same bits without the unit, slowly.

The CPU kernels choose block sizes from the caches of the machine. The environment variable ``RAINBOW_FAST_CACHES``
(bytes of the second-level cache, and of one CPU's share of the third-level cache, as ``1048576,16777216``) replaces
what the system reports. It is read at the same time, and a wrong value raises the same error. It changes the speed, and
no bits.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch  # imported before `_C`, so that `_C` uses the OpenMP runtime that torch has loaded

MOST_CACHE = 2**50  # bytes: kernels multiply sizes of caches by small numbers, in 64 bits
ISA_VARIABLE, CACHES_VARIABLE = "RAINBOW_FAST_ISA", "RAINBOW_FAST_CACHES"

# The codes of dtypes in the kernels: enum DType of csrc/kernels.h.
CODE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def _load() -> ModuleType | None:
    if importlib.util.find_spec("rainbow_fast._C") is None:
        return None
    return importlib.import_module("rainbow_fast._C")


def _select(extension: ModuleType | None, wanted: str | None) -> str | None:
    present = extension.levels() if extension else []
    if wanted and wanted not in present:
        runs = ", ".join(present) or "no compiled kernels"
        raise ImportError(f"{ISA_VARIABLE}={wanted!r}: this build on this machine can run {runs}")
    if extension is None:
        return None
    level = wanted or present[-1]
    extension.use(level)
    return level


def _set_caches(extension: ModuleType | None, wanted: str | None) -> None:
    if not wanted:
        return
    sizes = wanted.split(",")
    if len(sizes) != 2 or not all(size.strip().isdecimal() and 0 < int(size) < MOST_CACHE for size in sizes):
        raise ImportError(
            f"{CACHES_VARIABLE}={wanted!r}: wanted two numbers of bytes, above 0 and below 2^50, as 1048576,16777216"
        )
    if extension is not None:
        extension.set_caches(*map(int, sizes))


class Build(NamedTuple):
    """The kernels of an installation.

    Attributes:
        cpu, cuda: the compiled CPU and CUDA kernels; None if they are not built.
        cuda_devices: the types of devices that the CUDA kernels run on.
        triton: whether Triton is installed.
    """

    cpu: ModuleType | None = None
    cuda: ModuleType | None = None
    cuda_devices: tuple[str, ...] = ("cuda",)
    triton: bool = False


def _build() -> Build:
    extension = _load()
    return Build(extension, getattr(extension, "cuda", None), triton=importlib.util.find_spec("triton") is not None)


BUILD = _build()  # the kernels of this installation
isa: str | None = None
_isa_error = ""  # why the kernels cannot be used, if an environment variable is to blame
try:
    isa = _select(BUILD.cpu, os.environ.get(ISA_VARIABLE))
    _set_caches(BUILD.cpu, os.environ.get(CACHES_VARIABLE))
except ImportError as error:
    _isa_error = str(error)

WITHOUT_KERNELS = (
    "rainbow_fast is installed without its compiled kernels: ops run on plain PyTorch, which is slower and needs more "
    "memory. To get the kernels, install a C++20 compiler (GCC 12 or newer, or clang 14 or newer with libomp) and then "
    "the package again, in the folder of its sources: pip install --force-reinstall --no-deps ."
)


def warn_without_kernels(stacklevel: int) -> None:
    """Warn if this installation has no compiled kernels: what is lost, and how to get them."""
    if BUILD.cpu is None:
        warnings.warn(WITHOUT_KERNELS, stacklevel=stacklevel + 1)


def check_isa() -> None:
    """Raise ImportError if ``RAINBOW_FAST_ISA`` or ``RAINBOW_FAST_CACHES`` has a wrong value."""
    if _isa_error:
        raise ImportError(_isa_error)


LEAST_CAPABILITY = (8, 0)  # smallest compute capability for the CUDA kernels
# The kernels for GPUs that each op has, in the order in which backend=None takes those that are present. An order holds
# from a compute capability on, given by its first number. The reasons are counts of instructions, in
# docs/guide/gpus.md; the same order is taken on 8.0 and 9.0.
ON_GPUS: dict[str, dict[int, tuple[str, ...]]] = {
    # As many instructions for a number in both. Those of CUDA are compiled before the first call.
    "gaussian": {8: ("cuda", "triton")},
    "uniform": {8: ("cuda", "triton")},
    # Triton's take fewer instructions for a product; on 8.0 those of CUDA do, but only for aligned numbers as they are.
    "cross_covariance": {8: ("triton", "cuda")},
    "sample_project_align": {8: ("triton", "cuda")},
    # CUDA would take more instructions for a product, and compute features again for each 128 channels.
    "random_features": {8: ("triton",)},
    # Products of a library, with small kernels between them.
    "polar": {8: ("triton",)},
    "wavelet_modulus": {8: ("triton",)},
}
WORKSPACE_BYTES = 2**26  # memory that a CUDA kernel may use for the partial results of a long sum


def _on_gpu(op: str | None, device: torch.device) -> tuple[str, ...]:
    """The kernels for GPUs that an op has, the best for this device first; without an op, all that there are."""
    if op is None:
        return ("cuda", "triton")
    orders = ON_GPUS[op]
    if len(orders) == 1 or device.type != "cuda" or torch.version.hip is not None:
        return orders[8]
    major = torch.cuda.get_device_capability(device)[0]
    return orders[max((first for first in orders if first <= major), default=8)]


def available(
    device: torch.device | str = "cpu",
    op: str | None = None,
    lacking: Sequence[str] = (),
    *,
    build: Build | None = None,
) -> list[str]:
    """The backends that are available on `device`, the best first.

    ``"cpu"`` and ``"cuda"`` are available on their devices if the kernels are built. ``"triton"`` is available on CUDA
    and ROCm devices if it is installed, and on the CPU if Triton interprets its kernels (``TRITON_INTERPRET=1``).
    ``"reference"`` is always available.

    Args:
        device: the device; the CPU by default.
        op: the backends of this op, a name in `ON_GPUS`; None (default) for those that some op has.
        lacking: backends that the op does not have for its arguments.
        build: the kernels of another installation; None (default) for this one.
    """
    build = BUILD if build is None else build
    device = torch.device(device)
    there = {
        "cuda": build.cuda is not None and device.type in build.cuda_devices and torch.version.hip is None,
        "triton": build.triton
        and (device.type == "cuda" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")),
    }
    compiled = ["cpu"] if build.cpu is not None and device.type == "cpu" else []
    compiled += [name for name in _on_gpu(op, device) if there[name]]
    return [name for name in (*compiled, "reference") if name not in lacking]


def choose(
    backend: str | None,
    device: torch.device,
    dtype: torch.dtype,
    supported: Sequence[torch.dtype],
    op: str | None = None,
    lacking: Sequence[str] = (),
    *,
    called: str = "",
    build: Build | None = None,
) -> str:
    """The backend to run: the given one, or the first of `available` if it is None. There is no silent fallback.

    Args:
        backend: the argument ``backend=`` of an op.
        device: the device of the tensors.
        dtype: their dtype.
        supported: the dtypes that the kernels support.
        op, lacking, build: as in `available`.
        called: the name of the argument whose dtype is checked, for messages.

    Raises:
        ValueError: the backend is not available.
        TypeError: the kernels do not support the dtype. The reference supports all dtypes.
        RuntimeError: the driver or the device is too old for the CUDA kernels.
        ImportError: ``RAINBOW_FAST_ISA`` or ``RAINBOW_FAST_CACHES`` has a wrong value.
    """
    check_isa()
    build = BUILD if build is None else build
    present = available(device, op, lacking, build=build)
    if backend is not None and backend not in present:
        why = ""
        if backend == "triton" and device.type == "cuda" and not build.triton:
            why = " (triton is not installed: pip install triton)"
        elif backend == "cuda" and device.type == "cuda" and "cuda" in _on_gpu(op, device):
            why = " (built without nvcc, or for ROCm: RAINBOW_FAST_CUDA=1 asks for the CUDA kernels at build time)"
        raise ValueError(
            f"backend={backend!r} is not available on {device.type}: present are {', '.join(present)}{why}"
        )
    chosen = backend or present[0]
    if chosen != "reference" and dtype not in supported:
        names = ", ".join(str(s).removeprefix("torch.") for s in supported)
        which = f"{called}: dtype" if called else "dtype"
        raise TypeError(
            f"{which} {dtype} is not supported by backend {chosen!r} (it takes {names}): use backend='reference'"
        )
    if chosen == "cuda" and device.type == "cuda":
        _check_driver(build)
        _check_capability(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    return chosen


def kernels(chosen: str = "cpu") -> ModuleType:
    """The compiled kernels of the backend that `choose` returned, "cpu" or "cuda"."""
    check_isa()
    extension = BUILD.cuda if chosen == "cuda" else BUILD.cpu
    assert extension is not None
    return extension


def run_triton(name: str, device: torch.device, *args: Any) -> Any:
    """Call the function of `rainbow_fast.triton_kernels` that launches a kernel, when `choose` returned "triton".

    `name` is ``module.function``, or one word if both have the same name. Triton launches on the current device, so the
    device of the tensors is the current one during the call.
    """
    module, _, function = name.partition(".")
    launcher = getattr(importlib.import_module(f"rainbow_fast.triton_kernels.{module}"), function or module)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return launcher(*args)


Run = int | tuple[int, int, int, int]  # the number of threads, or struct Stream of csrc/kernels.h


@contextmanager
def running(chosen: str, device: torch.device, *, workspace: bool = False) -> Iterator[Run]:
    """A context that gives the last argument of a compiled kernel, which says where it runs.

    It is the number of threads on the CPU, and the current stream on another device. With `workspace`, a stream comes
    with memory for the partial results of a long sum.
    """
    if chosen == "cpu":
        yield torch.get_num_threads()
        return
    size = WORKSPACE_BYTES if workspace else 0
    parts = torch.empty(size, dtype=torch.uint8, device=device)
    if device.type != "cuda":
        yield 0, 0, parts.data_ptr(), size
        return
    stream = torch.cuda.current_stream(device)
    yield stream.device.index, stream.cuda_stream, parts.data_ptr(), size


def cuda_versions(build: Build | None = None) -> dict[str, str]:
    """The CUDA versions of the build, of torch, and the newest one the driver supports; ``"none"`` if missing."""

    def text(version: int) -> str:
        return f"{version // 1000}.{version % 1000 // 10}" if version else "none"

    cuda = (BUILD if build is None else build).cuda
    toolkit, driver = (0, 0) if cuda is None else (cuda.toolkit_version(), cuda.driver_version())
    return {"toolkit": text(toolkit), "torch": torch.version.cuda or "none", "driver": text(driver)}


def _check_driver(build: Build) -> None:
    """Check the driver: it supports kernels of its own major version of CUDA, and of older ones."""
    versions = cuda_versions(build)
    if versions["driver"] == "none":
        raise RuntimeError("backend='cuda': no NVIDIA driver is loaded; wanted one for CUDA " + versions["toolkit"])
    if int(versions["toolkit"].split(".")[0]) > int(versions["driver"].split(".")[0]):
        raise RuntimeError(
            f"backend='cuda': the kernels were built with CUDA {versions['toolkit']}, the driver takes up to "
            f"{versions['driver']}: update the driver, build with an older toolkit, or use backend='triton'"
        )


@functools.cache
def _check_capability(name: str, capability: tuple[int, int]) -> None:
    if capability < LEAST_CAPABILITY:
        have, want = (".".join(map(str, numbers)) for numbers in (capability, LEAST_CAPABILITY))
        raise RuntimeError(
            f"backend='cuda': {name} has compute capability {have}, wanted {want} or newer: use backend='triton'"
        )


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, strides: Sequence[int] | None = None
) -> torch.Tensor:
    """`torch.empty` for a result; on the CPU, in huge pages, because writing to new small pages is much slower.

    Args:
        shape, dtype, device: of the result.
        strides: of a dense result; None (default) for a contiguous one.
    """
    if strides is None:
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
    else:
        out = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=device)
    if BUILD.cpu is not None and out.device.type == "cpu":
        BUILD.cpu.advise_huge_pages(out.data_ptr(), out.nbytes)
    return out
