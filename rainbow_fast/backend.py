# SPDX-License-Identifier: BSD-3-Clause
"""What was built, and which kernel runs.

`isa` is the instruction-set level of the CPU kernels in use: the highest that this build holds and this machine runs,
or the one named by the environment variable ``RAINBOW_FAST_ISA`` (``baseline``, ``avx2``, ``avx512``,
``avx512_bf16``), which is read once, when the package is imported.
"""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType

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


_C = _load()
isa: str | None = _select(_C, os.environ.get(ISA_VARIABLE))


def available(device: torch.device | str = "cpu") -> list[str]:
    """The backends that run on `device`, best first: ``"cpu"`` (compiled) where it is built, and ``"reference"``."""
    compiled = ["cpu"] if _C is not None and torch.device(device).type == "cpu" else []
    return [*compiled, "reference"]


def choose(backend: str | None, device: torch.device, dtype: torch.dtype, supported: Sequence[torch.dtype]) -> str:
    """The backend that runs: the one named, else the first of `available`.

    Raises ValueError for a backend that is not there, and TypeError for a dtype outside `supported` unless the backend
    named is the reference. Nothing falls back silently.
    """
    present = available(device)
    if backend is not None and backend not in present:
        raise ValueError(f"backend={backend!r} is not available on {device.type}: present are {', '.join(present)}")
    chosen = backend or present[0]
    if chosen != "reference" and dtype not in supported:
        names = ", ".join(str(s).removeprefix("torch.") for s in supported)
        raise TypeError(
            f"dtype {dtype} is not supported by backend {chosen!r} (it takes {names}): use backend='reference'"
        )
    return chosen


def kernels() -> ModuleType:
    """The compiled kernels, for an implementation that `choose` has sent here."""
    assert _C is not None
    return _C


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for a result, as `torch.empty`; on the CPU behind large pages, whose first touch costs a fraction."""
    out = torch.empty(*shape, dtype=dtype, device=device)
    if _C is not None and out.device.type == "cpu":
        _C.advise_huge_pages(out.data_ptr(), out.nbytes)
    return out


def refuse_grad(name: str, *tensors: torch.Tensor | None) -> None:
    """Raise RuntimeError where an op that writes into given memory would drop a gradient."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{name} writes into given memory and has no gradient: detach its inputs or use torch.no_grad()"
        )
