# SPDX-License-Identifier: BSD-3-Clause
"""A fake GPU, for code that must not wait for a GPU: tensors that claim to be on `cuda`, and refuse to be read.

`Elsewhere` is a tensor on `cuda:0` whose operations run on `meta`. Everything that would fail on a real GPU, or make
the host wait for it, raises an error: reading a number on the host, a copy to the CPU, a CPU tensor in an operation on
the device. `stubbed` replaces the launchers by recorders, so that the implementations for CUDA and Triton run from end
to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from rainbow_fast import backend

aten = torch.ops.aten
CUDA, META = torch.device("cuda", 0), torch.device("meta")
COPIES = (aten._to_copy.default, aten.copy_.default, aten.to.dtype_layout)


class Elsewhere(Tensor):
    """A tensor on `cuda:0` without memory. Autograd, which would ask a driver for a stream, sees it on `meta`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: Tensor, requires_grad: bool = False) -> Elsewhere:
        wrapper = Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype,
            device="meta", requires_grad=requires_grad,
        )  # fmt: skip
        wrapper.inside = inside
        return wrapper

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def data_ptr(self) -> int:
        """An address. Views of the same memory have addresses inside it; other tensors do not."""
        base = self.inside.untyped_storage()._cdata << 20
        return base + self.inside.storage_offset() * self.inside.element_size()

    def tolist(self) -> Any:
        raise AssertionError("the host waits for the GPU: tolist")

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


def run(op: Any, args: Any, kwargs: dict) -> Any:
    if op in (aten._local_scalar_dense.default, aten.item.default, aten.equal.default, aten.is_nonzero.default):
        raise AssertionError(f"the host waits for the GPU: {op}")
    to = kwargs.get("device")
    if op in COPIES and to is not None and torch.device(to).type == "cpu":
        raise AssertionError(f"the host waits for the GPU: {op} to the CPU")
    if op is aten.copy_.default and not isinstance(args[0], Elsewhere):
        raise AssertionError(f"the host waits for the GPU: {op} into a CPU tensor")
    if op not in COPIES:
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, Tensor) and not isinstance(t, Elsewhere) and t.dim():
                raise AssertionError(f"{op} of a CPU tensor of shape {tuple(t.shape)} and one on the GPU")
    if to is not None:
        kwargs = kwargs | {"device": META}

    def inside(t: Tensor) -> Tensor:
        return t.inside if isinstance(t, Elsewhere) else t.to(META)

    results = op(*tree_map_only(Tensor, inside, args), **tree_map_only(Tensor, inside, kwargs))
    if op._schema.is_mutable:
        return args[0]
    return tree_map(lambda t: Elsewhere(t) if isinstance(t, Tensor) else t, results)


class Factories(TorchDispatchMode):
    """Handles new tensors on `cuda` (autograd asks for them on `meta`), tensors that are moved there, and the ops.

    While `capturing`, as into a CUDA graph, nothing may be copied from the memory of the host: it would wait.
    """

    capturing = False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if op is aten.to.device:  # from numpy
            op, args, kwargs = aten._to_copy.default, args[:1], {"device": args[1], "dtype": args[2]}
        if self.capturing and op in COPIES:
            self.check_copy(op, *args, **kwargs)
        if op.namespace == "rainbow_fast":
            with self:
                return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        device = kwargs.get("device")
        elsewhere = any(isinstance(t, Elsewhere) for t in tree_leaves((args, kwargs)))
        if elsewhere or device is None or torch.device(device).type == "cpu":
            return op(*args, **kwargs)
        return Elsewhere(op(*tree_map_only(Tensor, lambda t: t.to(META), args), **kwargs | {"device": META}))

    @staticmethod
    def check_copy(op: Any, *tensors: Any, device: Any = "cpu", **_: Any) -> None:
        into = isinstance(tensors[0], Elsewhere) if op is aten.copy_.default else torch.device(device).type == "cuda"
        source = tensors[op is aten.copy_.default]
        if into and not isinstance(source, Elsewhere):
            raise AssertionError(f"the host waits for the GPU: {op} from the CPU")


class Recorder:
    """Takes the place of the compiled kernels and records the names of those that were launched."""

    def __init__(self, mode: Factories) -> None:
        self.launched: list[str] = []
        self.mode = mode

    def toolkit_version(self) -> int:
        return 13000

    driver_version = toolkit_version

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments: self.launched.append(name)


@contextmanager
def stubbed(built: str, monkeypatch: pytest.MonkeyPatch, *, launchers: bool = False) -> Iterator[Recorder]:
    """The implementations of Triton, and if `built` is "both" of CUDA, with recorders instead of launchers.

    With `launchers`, those of Triton run, for a test that replaces what they launch.
    """
    mode = Factories()
    recorder = Recorder(mode)

    def launch(name: str, device: torch.device, *arguments: Any) -> None:
        assert device.type == "cuda"
        recorder.launched.append(f"triton {name}")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "BUILD", backend.Build(cuda=recorder if built == "both" else None, triton=True))
        if not launchers:
            patch.setattr(backend, "run_triton", launch)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "none")
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        stream = SimpleNamespace(device=CUDA, cuda_stream=0)
        patch.setattr(torch.cuda, "current_stream", lambda device: stream)
        with mode:
            yield recorder


def moved(t: Tensor) -> Elsewhere:
    """A fake tensor of the same shape and dtype, which requires grad if the given one does."""
    with _disable_current_modes():
        return Elsewhere(t.detach().to(META), requires_grad=t.requires_grad)


def move(module: nn.Module) -> nn.Module:
    """Moves the parameters and buffers of a module to the fake GPU, in place."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(moved(p), requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = moved(b)
    return module
