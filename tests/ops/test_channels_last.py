# SPDX-License-Identifier: BSD-3-Clause
"""Results in the memory format of u: random_features and random_features_projection of channels-last maps."""

import pytest
import torch
from features import problem
from here import BACKENDS, LEVELS, assert_same_for_threads, differing_bits, draw, laid_out, level
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import rainbow_fast as rf
from rainbow_fast.ops.memory import channels_last

SHAPES = {  # of u; 19 channels and 5 x 7 positions are no whole vectors
    "sequence": (3, 19, 35),
    "map": (3, 19, 5, 7),
    "volume": (2, 19, 3, 2, 5),
}


def both(u: Tensor, A: list[Tensor], shift: Tensor | None = None, **options) -> list[Tensor]:
    """The features, and the projections."""
    n = max(a.shape[-1] for a in A)
    features = rf.random_features(u, n, shift=shift, **options)
    return [features, *rf.random_features_projection(u, A, shift=shift, **options)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_have_the_format_of_u(shape: tuple[int, ...], backend: str) -> None:
    _, u, A, shift = problem(shape, 301, 21)  # more neurons than a chunk
    for parts in ([A], [A[:, :70], A[:3, :5]]):
        wanted = both(u, parts, shift, seed=1, backend=backend)
        got = both(laid_out(u, "channels_last"), parts, shift, seed=1, backend=backend)
        for a, b in zip(got, wanted, strict=True):
            assert b.is_contiguous() and a.movedim(1, -1).is_contiguous()
            if backend == "cpu":
                assert differing_bits(a, b) == 0
            else:  # 1e-5: other products of 19 and 301 terms, in float32
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bits_do_not_depend_on_the_format(dtype: torch.dtype, name: str) -> None:
    _, u, A, shift = problem((11, 6, 9, 11), 250, 53, dtype)  # blocks of samples cut images
    with level(name):
        for few in (A, A[:, :40], A[:, :0], A[:0]):
            wanted = both(u, [few], shift, seed=1, backend="cpu")
            got = both(laid_out(u, "channels_last"), [few], shift, seed=1, backend="cpu")
            assert all(differing_bits(a, b) == 0 for a, b in zip(got, wanted, strict=True))
        u = laid_out(u, "channels_last")
        assert_same_for_threads(lambda: tuple(both(u, [A, A[:, :40]], shift, seed=1, backend="cpu")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_seeds(backend: str) -> None:
    u = laid_out(draw(3, 5, 4, 6), "channels_last")
    out = rf.random_features(u, 7, seed=[1, 2], backend=backend)
    assert out.shape == (2, 3, 7, 4, 6) and out.movedim(2, -1).is_contiguous()
    assert torch.equal(out[1], rf.random_features(u, 7, seed=2, backend=backend))
    projected = rf.random_features_projection(u, draw(2, 7), seed=[1, 2], backend=backend)
    assert projected.movedim(2, -1).is_contiguous()


FORMS = {
    "map": laid_out(draw(3, 5, 4, 6), "channels_last"),
    "slice-of-channels": laid_out(draw(3, 9, 4, 6), "channels_last")[:, 2:7],
    "slice-of-positions": laid_out(draw(3, 5, 8, 6), "channels_last")[:, :, ::2],
    "one-position": draw(3, 5, 1, 1).to(memory_format=torch.channels_last),
    "one-channel": draw(3, 1, 4, 6).to(memory_format=torch.channels_last),
    "contiguous": draw(3, 5, 4, 6),
    "contiguous-one-channel": draw(3, 1, 4, 6),
    "contiguous-one-position": draw(3, 5, 1, 1),
    "expanded-channels": draw(3, 1, 4, 6).expand(3, 5, 4, 6),
    "expanded-images": laid_out(draw(1, 5, 4, 6), "channels_last").expand(3, 5, 4, 6),
    "turned": laid_out(draw(3, 5, 4, 6), "transposed"),
    "no-images": laid_out(draw(0, 5, 4, 6), "channels_last"),
}


@pytest.mark.parametrize("u", FORMS.values(), ids=FORMS)
def test_format_is_the_one_that_torch_suggests(u: Tensor) -> None:
    suggested = torch.nn.functional.conv2d(u, torch.zeros(7, u.shape[1], 1, 1))  # it keeps the format of its input
    assert channels_last(u) == (torch._prims_common.suggest_memory_format(u) == torch.channels_last)
    assert rf.random_features(u, 7, seed=1).stride() == suggested.stride()


def test_rows_have_no_format() -> None:
    assert not channels_last(draw(3, 5)) and not channels_last(draw(5, 3).T)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fake_and_meta_results_have_the_same_strides(layout: str) -> None:
    u, A = laid_out(draw(3, 5, 4, 6), layout), draw(2, 7)
    wanted = [t.stride() for t in both(u, [A], seed=1, backend="reference")]
    with FakeTensorMode() as mode:
        fake = both(mode.from_tensor(u), [mode.from_tensor(A)], seed=1)
    meta = torch.empty_strided(u.shape, u.stride(), device="meta")
    for results in (fake, both(meta, [A.to("meta")], seed=1)):
        assert [t.stride() for t in results] == wanted


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles(dynamic: bool) -> None:
    u, A = laid_out(draw(3, 5, 4, 6), "channels_last"), draw(2, 7)
    compiled = torch.compile(lambda u, A: both(u, [A], seed=1), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for a, b in zip(compiled(u, A), both(u, [A], seed=1), strict=True):
        assert a.stride() == b.stride() and torch.equal(a, b)


def test_derivatives() -> None:
    u, A = laid_out(draw(3, 5, 2, 3, dtype=torch.float64), "channels_last").requires_grad_(), draw(2, 7).double()
    for result in both(u, [A], seed=1, activation="gelu"):
        assert result.movedim(1, -1).is_contiguous()
        [grad] = torch.autograd.grad(result.square().sum(), u, retain_graph=True)
        v = u.detach().contiguous().requires_grad_()
        place = 0 if result.shape[1] == 7 else 1
        [wanted] = torch.autograd.grad(both(v, [A], seed=1, activation="gelu")[place].square().sum(), v)
        torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-12)  # float64
    with torch.no_grad():
        vmapped = torch.vmap(lambda t: rf.random_features(t, 7, seed=1))(torch.stack([u, u + 1]))
        torch.testing.assert_close(vmapped[0], rf.random_features(u, 7, seed=1), rtol=1e-14, atol=1e-14)
