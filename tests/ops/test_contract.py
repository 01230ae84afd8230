# SPDX-License-Identifier: BSD-3-Clause
"""What torch promises for operators that write: versions, gradients, shared memory; and lazy tensors."""

from collections.abc import Callable

import pytest
import torch
from here import draw
from tolerance import REORDERED
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp

import rainbow_fast as rf

ops = torch.ops.rainbow_fast
F64 = torch.float64
SQUARE = draw(3, 3, dtype=F64)
PAIR = (SQUARE, SQUARE, None, None, None)  # x and u, without shift and centers
HOW = (rf.key(1), None, "relu", 0.01, 1.0, None, None)

# Each writes into a float64 tensor (3, 3).
WRITERS: dict[str, Callable[[Tensor], object]] = {
    "gaussian": lambda out: rf.gaussian(3, 3, seed=1, out=out),
    "uniform": lambda out: rf.uniform(3, 3, seed=1, out=out),
    "cross_covariance_": lambda out: rf.cross_covariance_(out, SQUARE),
    "patch_covariance_out": lambda out: ops.patch_covariance_out(
        SQUARE.view(1, 3, 3, 1), None, [1, 1, 0, 1], None, None, out
    ),
    "sample_project_align_": lambda out: rf.sample_project_align_(out, SQUARE, seed=1),
    "polar_": rf.polar_,
    "polar_out": lambda out: ops.polar_out(SQUARE, False, None, None, None, None, out, torch.zeros(4, dtype=F64)),
    "random_features_out": lambda out: ops.random_features_out(SQUARE, None, *HOW, out),
    "random_features_covariance_out": lambda out: ops.random_features_covariance_out(
        *PAIR, *HOW, out, torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    ),
    "random_features_projection_out": lambda out: ops.random_features_projection_out(
        SQUARE, [SQUARE], None, *HOW, [out]
    ),
}
each = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def test_every_op_that_writes_is_here() -> None:
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("rainbow_fast::")}
    writing = {n.removeprefix("rainbow_fast::") for n in names if n.endswith("_")} | {
        n.removeprefix("rainbow_fast::") for n in names if n.endswith("_out")
    }
    by_op = {"gaussian": "gaussian_out", "uniform": "uniform_out", "cross_covariance_": "cross_covariance_out"}
    by_op["sample_project_align_"] = "sample_project_align_out"
    assert {by_op.get(name, name) for name in WRITERS} == writing


@each
def test_versions_are_bumped(write) -> None:
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        out = SQUARE.clone()
        before = out._version
        with context:
            write(out)
        assert out._version == before + 1


@each
def test_a_saved_tensor_that_was_overwritten_is_found(write) -> None:
    w, h = SQUARE.clone().requires_grad_(), SQUARE.clone()
    y = (w * h).sum()
    write(h)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@each
def test_nothing_that_requires_grad_is_overwritten(write) -> None:
    leaf = SQUARE.clone().requires_grad_()
    for out in (leaf, leaf * 1.0):
        before = out.detach().clone()
        with pytest.raises(RuntimeError, match=r"writes into given memory and has no gradient"):
            write(out)
        assert torch.equal(out, before), "written before the error"
        with torch.no_grad():
            write(out)  # as torch's own


@each
def test_under_transforms_nothing_is_dropped(write) -> None:
    """No tangent and no gradient is lost without an error."""

    def through(out: Tensor) -> Tensor:
        out = out * 1.0
        write(out)
        return out.sum()

    with pytest.raises(RuntimeError, match=r"has no gradient"):
        grad(through)(SQUARE)
    with pytest.raises(RuntimeError, match=r"has no forward-mode derivative"):
        jvp(through, (SQUARE,), (SQUARE,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"has no forward-mode derivative"):
        write(forward_ad.make_dual(SQUARE.clone(), SQUARE))


@each
def test_a_tensor_of_inference_mode(write) -> None:
    with torch.inference_mode():
        out = SQUARE.clone()
        write(out)
    before = out.clone()
    with pytest.raises(RuntimeError, match=r"writes into a tensor of inference mode: clone it, or stay in that mode"):
        write(out)
    assert torch.equal(out, before)


@each
def test_entries_that_share_an_address(write) -> None:
    for out in (torch.zeros(1, 3, dtype=F64).expand(3, 3), torch.zeros(7, dtype=F64).as_strided((3, 3), (2, 1))):
        before = out.clone()
        with pytest.raises(ValueError, match=r"has strides .*: wanted a different address for each entry"):
            write(out)
        assert torch.equal(out, before), "written before the error"


def test_memory_of_an_input() -> None:
    base = draw(40, dtype=F64)
    x, out = base[:9].view(3, 3), base[4:13].view(3, 3)
    kept, row = base.clone(), torch.zeros(3, dtype=F64)
    calls = {
        "x": lambda: rf.cross_covariance_(out, x),
        "y": lambda: rf.cross_covariance_(out, SQUARE, [SQUARE[:, :1], x[:, :2]]),
        "L": lambda: rf.sample_project_align_(out, x, seed=1),
        "M": lambda: ops.polar_out(x, False, None, None, None, None, out, torch.zeros(4, dtype=F64)),
        "u": lambda: ops.random_features_out(x, None, *HOW, out),
        "shift": lambda: ops.random_features_out(SQUARE, x[2], *HOW, out),
        "G": lambda: ops.random_features_out(SQUARE, None, None, x, "relu", 0.01, 1.0, None, None, out),
        "A": lambda: ops.random_features_projection_out(SQUARE, [x], None, *HOW, [out]),
        "total": lambda: ops.random_features_covariance_out(
            SQUARE, SQUARE, None, None, None, *HOW, out.clone(), row, row
        ),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"shares memory with {name}: wanted memory of its own"):
            call()
        assert torch.equal(base, kept), "written before the error"


def test_columns_beside_each_other_share_no_memory() -> None:
    """The ranges of addresses overlap, the entries do not."""
    base = torch.zeros(3, 8, dtype=F64)
    base[:, :3] = SQUARE
    assert torch.equal(rf.cross_covariance_(base[:, 4:7], base[:, :3]), rf.cross_covariance(SQUARE))


def lazily_negative(t: Tensor) -> Tensor:
    """The same numbers, in memory that holds their negatives."""
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg() and torch.equal(view, t)
    return view


@each
def test_lazily_negative_outputs(write) -> None:
    plain, lazy = SQUARE.clone(), lazily_negative(SQUARE)
    write(plain)
    write(lazy)
    torch.testing.assert_close(lazy.resolve_neg(), plain, **REORDERED)


def test_lazily_negative_inputs() -> None:
    x, y = draw(5, 4), lazily_negative(draw(5, 4))
    assert torch.equal(x, y)
    for function in (
        rf.cross_covariance,
        lambda t: rf.sample_project_align(3, t, seed=1),
        lambda t: rf.random_features(t, 3, seed=1),
        lambda t: rf.random_features_projection(t, t[:2], seed=1),
        lambda t: rf.polar(t).A,
        lambda t: rf.wavelet_modulus(t.view(1, 1, 5, 4)),
        lambda t: rf.cross_covariance_(torch.zeros(4, 4, dtype=F64), t),
    ):
        assert torch.equal(function(x), function(y))


# --- the rules of autograd hold under another default device ---


def test_a_default_device_without_memory() -> None:
    """With `torch.device("meta")` as the default device, no CPU result has memory that was never written."""
    x, long = draw(50, 6), draw(2, 1000)
    thin = x[:1].expand(4, 6) + x[:4] * 1e-9
    calls = [
        lambda: rf.gaussian(3, 4, seed=1, device="cpu"),
        lambda: rf.gaussian(3, 4, seed=1),
        lambda: rf.uniform(3, 4, seed=1),
        lambda: rf.random_features(x, 8, seed=[1, 2]),
        lambda: rf.random_features_covariance(x, x, 8, seed=1)[0],
        lambda: rf.sample_project_align(8, x[:4], seed=1),
        lambda: rf.cross_covariance(x, center=True),
        lambda: rf.polar(x).A,
        lambda: rf.polar(thin, rank="complete").A,  # by singular factors
        lambda: rf.polar(long, rtol=1e-10).A,  # by L Q
        lambda: grad(lambda u: rf.random_features(u, 8, seed=1).square().sum())(x),
        lambda: grad(lambda L: rf.sample_project_align(8, L, seed=1).square().sum())(x[:4]),
    ]
    for call in calls:
        wanted = call()
        with torch.device("meta"):
            got = call()
        assert got.device.type == "cpu" and torch.equal(got, wanted)


def test_a_traced_graph_has_the_op_and_nothing_else() -> None:
    """A graph that is traced again, as the compiler does, must have as many nodes as before."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode()
    with tracing(TracingContext(mode)), mode:
        M = mode.from_tensor(torch.ones(3, 5))
        graph = make_fx(lambda M: torch.ops.rainbow_fast.polar_(M, False, None, None, None, None))(M).graph
    called = [
        str(node.target) for node in graph.nodes if node.op == "call_function" and "getitem" not in str(node.target)
    ]
    assert called == ["rainbow_fast.polar_.default"]
