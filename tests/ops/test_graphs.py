# SPDX-License-Identifier: BSD-3-Clause
"""Every public op in an exported module, a compiled function and a CUDA graph; each cell of the table in the guide."""

import inspect
import os
from collections.abc import Iterator

import pytest
import torch
from graph_cases import CASES, KEY, Case, table
from here import ROOT, assert_compiles_once, differing_bits
from no_gpu import CUDA, Elsewhere, moved, stubbed
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.ops.wavelet_modulus_arguments import in_tiles

each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_public_op_is_here_and_in_the_guide() -> None:
    """All functions that `rainbow_fast` has from its ops, but for `key`, which computes nothing."""
    functions = {name for name in rf.__all__ if inspect.isfunction(getattr(rf, name))}
    ops = {name for name in functions if getattr(rf, name).__module__.startswith("rainbow_fast.ops.")} - {"key"}
    assert set(CASES) == ops
    assert table() in (ROOT / "docs/guide/graphs.md").read_text()


class Call(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.case.call(*arguments)


@each
def test_exported_with_changing_sizes(case: Case) -> None:
    """The key is an argument too: the exported module follows it."""
    fixed = (None,) * (len(case.arguments) - len(case.axes))
    shapes = (*(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in case.axes), *fixed)
    exported = torch.export.export(Call(case), case.arguments, dynamic_shapes=(shapes,)).module()
    for arguments in (case.arguments, case.other_arguments()):
        assert differing_bits(exported(*arguments), case.call(*arguments)) == 0


@each
def test_compiled_once_in_one_graph(case: Case) -> None:
    assert_compiles_once(case.call, [case.arguments, case.other_arguments()], dynamic=True)


def called(case: Case) -> list[torch._ops.OpOverload]:
    """The operators of this package that a call consists of."""
    fixed = (None,) * (len(case.arguments) - len(case.axes))
    graph = torch.export.export(Call(case), case.arguments, dynamic_shapes=((*({} for _ in case.axes), *fixed),)).graph
    return [node.target for node in graph.nodes if getattr(node.target, "namespace", "") == "rainbow_fast"]


@each
def test_what_torch_compile_may_capture(case: Case) -> None:
    """The graphs of mode="reduce-overhead" are replayed for other keys, which a captured kernel would not follow."""
    outside = [torch.Tag.cudagraph_unsafe in op.tags for op in called(case)]
    assert outside and set(outside) == {case.by_compile == "no"}


def test_every_operator_with_a_key_stays_out_of_graphs_of_torch_compile() -> None:
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("rainbow_fast::") and any(a.name == "key" for a in schema.arguments):
            op = getattr(torch.ops.rainbow_fast, schema.name.removeprefix("rainbow_fast::")).default
            assert torch.Tag.cudagraph_unsafe in op.tags, schema.name


# --- CUDA graphs, without a GPU ---


def arguments_there(case: Case) -> list[Tensor]:
    return [t if t is KEY else moved(t) for t in case.arguments]


@pytest.fixture
def own_filters() -> Iterator[None]:
    """No filters of wavelets are kept from another test, or for one."""
    in_tiles.cache_clear()
    yield
    in_tiles.cache_clear()


@pytest.mark.unpoisoned
@pytest.mark.parametrize("built", ["both", "triton"])
@each
def test_captured_in_a_cuda_graph(case: Case, built: str, own_filters: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the launch: the host waits for nothing, and nothing is copied from it to the GPU."""
    with stubbed(built, monkeypatch) as recorder:
        arguments = arguments_there(case)
        if case.by_hand != "yes":
            recorder.mode.capturing = True
            with pytest.raises(AssertionError, match="the host waits for the GPU"):
                case.call(*arguments)
        if case.by_hand == "after a first call":
            recorder.mode.capturing = False
            case.call(*arguments)
        if case.by_hand != "no":
            recorder.launched.clear()
            recorder.mode.capturing = True
            assert isinstance(case.call(*arguments), Elsewhere)
            assert recorder.launched


@pytest.mark.unpoisoned
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are launched, not interpreted")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.by_hand != "no"])
def test_launchers_of_triton_are_captured(name: str, own_filters: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python code that allocates, plans and launches, with its kernels stubbed."""
    jit = pytest.importorskip("triton.runtime.jit", reason="needs triton, whose launchers run")
    case, kernels = CASES[name], []
    monkeypatch.setattr(jit.JITFunction, "run", lambda kernel, *_, **options: kernels.append(kernel.__name__))
    with stubbed("triton", monkeypatch, launchers=True) as recorder:
        arguments = arguments_there(case)
        case.call(*arguments)
        kernels.clear()
        recorder.mode.capturing = True
        assert isinstance(case.call(*arguments), Elsewhere)
    assert kernels


@pytest.mark.unpoisoned
def test_the_refusals_of_a_capture_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = torch.zeros(3), moved(torch.zeros(3))
    with stubbed("both", monkeypatch) as recorder:
        there.copy_(here)
        recorder.mode.capturing = True
        from_numpy = lambda: torch.as_tensor(here.numpy(), device=CUDA)  # noqa: E731
        for copy in (lambda: there.copy_(here), lambda: here.to(CUDA), from_numpy):
            with pytest.raises(AssertionError, match="the host waits for the GPU: .* from the CPU"):
                copy()
