# SPDX-License-Identifier: BSD-3-Clause
"""What was built, and which kernel runs: ``"cpu"``, ``"cuda"`` and ``"triton"`` are compiled, ``"reference"`` is torch.

`isa` is the instruction-set level of the CPU kernels in use: the highest that this build holds and this machine runs,
or the one named by the environment variable ``RAINBOW_FAST_ISA`` (``baseline``, ``avx2``, ``avx512``,
``avx512_bf16``), which is read once, when the package is imported.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch  # before `_C`: both then share the OpenMP runtime that torch has loaded

ISA_VARIABLE = "RAINBOW_FAST_ISA"

# What the kernels call the element types: enum DType of csrc/kernels.h.
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


class Build(NamedTuple):
    """What there is to run, besides torch.

    Attributes:
        cpu, cuda: the compiled kernels of either kind, None where they are not built.
        cuda_devices: kinds of devices that the CUDA kernels run on.
        triton: whether Triton is installed.
    """

    cpu: ModuleType | None = None
    cuda: ModuleType | None = None
    cuda_devices: tuple[str, ...] = ("cuda",)
    triton: bool = False


def _build() -> Build:
    extension = _load()
    return Build(extension, getattr(extension, "cuda", None), triton=importlib.util.find_spec("triton") is not None)


BUILD = _build()  # of this installation
isa: str | None = _select(BUILD.cpu, os.environ.get(ISA_VARIABLE))

LEAST_CAPABILITY = (8, 0)  # of a device that the CUDA kernels run on
WORKSPACE_BYTES = 2**26  # that a CUDA kernel may use besides its results; the parts of a long sum fit into it


def available(
    device: torch.device | str = "cpu", lacking: Sequence[str] = (), *, build: Build | None = None
) -> list[str]:
    """The backends that run on `device`, best first, but for those that are `lacking` of an op; of this installation,
    or of another `build`.

    ``"cpu"`` or ``"cuda"``, the compiled kernels of the device, where they are built; ``"triton"`` on CUDA and ROCm
    devices where it is installed, and on the CPU where Triton interprets its kernels (``TRITON_INTERPRET=1``);
    ``"reference"``.
    """
    build = BUILD if build is None else build
    kind = torch.device(device).type
    compiled = ["cpu"] if build.cpu is not None and kind == "cpu" else []
    if build.cuda is not None and kind in build.cuda_devices and torch.version.hip is None:
        compiled.append("cuda")
    if build.triton and (kind == "cuda" or (kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")):
        compiled.append("triton")
    return [name for name in (*compiled, "reference") if name not in lacking]


def choose(
    backend: str | None,
    device: torch.device,
    dtype: torch.dtype,
    supported: Sequence[torch.dtype],
    lacking: Sequence[str] = (),
    *,
    called: str = "",
    build: Build | None = None,
) -> str:
    """The backend that runs: the one named, else the first of `available`. Nothing falls back silently.

    Raises:
        ValueError: a backend that is not there.
        TypeError: a dtype outside `supported`, unless the backend named is the reference; the message begins with the
            name of the argument, `called`.
        RuntimeError: CUDA kernels that the driver, or the device, is too old for.
    """
    build = BUILD if build is None else build
    present = available(device, lacking, build=build)
    if backend is not None and backend not in present:
        why = ""
        if backend == "triton" and device.type == "cuda" and not build.triton:
            why = " (triton is not installed: pip install triton)"
        elif backend == "cuda" and device.type == "cuda" and "cuda" not in lacking:
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
    """The compiled kernels, for an implementation that `choose` has sent here."""
    extension = BUILD.cuda if chosen == "cuda" else BUILD.cpu
    assert extension is not None
    return extension


def run_triton(name: str, device: torch.device, *args: Any) -> Any:
    """Run a launcher of `rainbow_fast.triton_kernels`, for an implementation that `choose` has sent here.

    `name` is ``module.function``, or one word where these are alike. Triton launches on the current device, which is
    that of the tensors meanwhile.
    """
    module, _, function = name.partition(".")
    launcher = getattr(importlib.import_module(f"rainbow_fast.triton_kernels.{module}"), function or module)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return launcher(*args)


Run = int | tuple[int, int, int, int]  # threads; or struct Stream of csrc/kernels.h


@contextmanager
def running(chosen: str, device: torch.device, *, workspace: bool = False) -> Iterator[Run]:
    """Where a compiled kernel is to run, its last argument: the number of threads, or the current stream of the device,
    with memory for the parts of a long sum where `workspace` says so."""
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
    """The CUDA of this build's toolkit, of torch, and the newest the driver takes; ``"none"`` where one is missing."""

    def text(version: int) -> str:
        return f"{version // 1000}.{version % 1000 // 10}" if version else "none"

    cuda = (BUILD if build is None else build).cuda
    toolkit, driver = (0, 0) if cuda is None else (cuda.toolkit_version(), cuda.driver_version())
    return {"toolkit": text(toolkit), "torch": torch.version.cuda or "none", "driver": text(driver)}


def _check_driver(build: Build) -> None:
    """A driver takes kernels of its own major version of CUDA, and of older ones."""
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


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for a result, as `torch.empty`; on the CPU behind large pages, whose first touch costs a fraction."""
    out = torch.empty(*shape, dtype=dtype, device=device)
    if BUILD.cpu is not None and out.device.type == "cpu":
        BUILD.cpu.advise_huge_pages(out.data_ptr(), out.nbytes)
    return out


def refuse_grad(name: str, *tensors: torch.Tensor | None) -> None:
    """Raise RuntimeError where an op that writes into given memory would drop a gradient."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{name} writes into given memory and has no gradient: detach its inputs or use torch.no_grad()"
        )
