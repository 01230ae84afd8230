# SPDX-License-Identifier: BSD-3-Clause
"""The Triton wavelet_modulus and its gradient against their reference; run by tests/triton_kernels/test_triton.py."""

import pytest
import torch
from here import differing_bits, draw, laid_out
from tolerance import assert_close_to_float64
from torch import Tensor

from rainbow_fast import WaveletBank, wavelet_modulus
from rainbow_fast.ops.wavelet_modulus_arguments import LARGEST, described, in_tiles
from rainbow_fast.triton_kernels import wavelet_modulus as kernels

ops = torch.ops.rainbow_fast
BANKS = {
    **{name: WaveletBank.named(name) for name in ("standard", "a", "b")},
    "of one's own": WaveletBank(0.6, 1.1, 1.7, stride=1, taps=15),
}
CASES = {  # N, c, H, W; the bank; skip; complex
    "one": ((1, 1, 2, 2), "standard", False, False),
    "many-maps-of-a-tile": ((3, 23, 4, 4), "b", False, False),
    "tiles-with-a-rest": ((2, 7, 5, 3), "a", True, False),
    "one-map-of-a-tile": ((2, 3, 16, 9), "of one's own", False, True),
    "longer-than-16": ((2, 3, 17, 8), "b", True, True),
    "largest": ((1, 2, 32, 32), "standard", True, False),
    "largest-and-odd": ((1, 2, 31, 32), "a", False, True),
    "own-and-skip": ((1, 3, 8, 11), "of one's own", True, False),
}


def how(name: str, skip: bool, backend: str | None = "triton") -> tuple:
    bank = BANKS[name]
    return [bank.phi_sigma, bank.psi_sigma, bank.xi], bank.stride, bank.taps, skip, backend


def inputs(shape: tuple[int, ...], name: str, skip: bool, pairs: bool) -> tuple[Tensor, Tensor]:
    """z and the gradient of the output, in float64, with numbers that float32 has."""
    z = draw(*shape, *[2] * pairs).double()
    out = ops.wavelet_modulus(z, *how(name, skip, "reference"))
    return z, draw(*out.shape, seed=1).double()


@pytest.mark.parametrize(("shape", "name", "skip", "pairs"), CASES.values(), ids=CASES)
def test_matches_the_reference(guarded, shape: tuple[int, ...], name: str, skip: bool, pairs: bool) -> None:
    bank = BANKS[name]
    z, grad = inputs(shape, name, skip, pairs)
    exact = how(name, skip, "reference")
    wanted = ops.wavelet_modulus(z, *exact), ops.wavelet_modulus_gradient(z, grad, *exact)
    for dtype in (torch.float32, torch.float64):
        own, own_grad = z.to(dtype), grad.to(dtype)
        plain = ops.wavelet_modulus(own, *exact), ops.wavelet_modulus_gradient(own, own_grad, *exact)
        got = [guarded(*each.shape, dtype=dtype) for each in wanted]
        filters = in_tiles(bank, *shape[2:], dtype, z.device)
        kernels.wavelet_modulus(got[0], described(own)[0], skip, filters)
        kernels.wavelet_modulus_gradient(got[1], described(own)[0], own_grad, skip, filters)
        for result, right, other in zip(got, wanted, plain, strict=True):
            if dtype == torch.float64:
                torch.testing.assert_close(result, right, rtol=1e-11, atol=1e-12)  # near 0, moduli are less exact
            else:  # a sum along columns of sums along rows, and its transpose
                assert_close_to_float64(result, right, other, terms=4 * bank.taps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("skip", "pairs"), [(False, False), (True, False), (False, True)])
def test_half_precision_is_float32_rounded(dtype: torch.dtype, skip: bool, pairs: bool) -> None:
    z, grad = (t.to(dtype) for t in inputs((2, 5, 6, 10), "a", skip, pairs))
    plain = skip or pairs
    wanted = ops.wavelet_modulus(z.float(), *how("a", skip))
    assert torch.equal(ops.wavelet_modulus(z, *how("a", skip)), wanted if plain else wanted.to(dtype))
    wanted = ops.wavelet_modulus_gradient(z.float(), grad.float(), *how("a", skip)).to(dtype)
    upstream = grad.float() if plain else grad
    assert torch.equal(ops.wavelet_modulus_gradient(z, upstream, *how("a", skip)), wanted)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_layouts_of_both_inputs(layout: str, pairs: bool) -> None:
    z, grad = (t.float() for t in inputs((2, 5, 6, 10), "b", pairs, pairs))
    other = [laid_out(t, layout) for t in (z, grad)]
    assert [t.is_contiguous() for t in other] == [False, False]
    assert torch.equal(ops.wavelet_modulus(other[0], *how("b", pairs)), ops.wavelet_modulus(z, *how("b", pairs)))
    wanted = ops.wavelet_modulus_gradient(z, grad, *how("b", pairs))
    assert torch.equal(ops.wavelet_modulus_gradient(*other, *how("b", pairs)), wanted)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    z, grad = (t.float() for t in inputs(shape, "b", True, False))
    assert ops.wavelet_modulus(z, *how("b", True)).shape == grad.shape
    assert ops.wavelet_modulus_gradient(z, grad, *how("b", True)).shape == z.shape


@pytest.mark.parametrize("skip", [False, True])
def test_the_gradient_of_moduli_is_zero_at_zero(skip: bool) -> None:
    z = torch.zeros(1, 3, 6, 8)
    upstream = torch.ones_like(ops.wavelet_modulus(z, *how("b", skip)))
    upstream[:, : 15 if skip else 3] = 0  # what is linear in z
    assert (ops.wavelet_modulus(z, *how("b", skip)) == 0).all()
    assert (ops.wavelet_modulus_gradient(z, upstream, *how("b", skip)) == 0).all()


@pytest.mark.parametrize("scale", [2.0**100, 2.0**-90])
def test_scales_exactly(scale: float) -> None:
    """Squares of the largest numbers overflow, those of the smallest vanish."""
    z, grad = (t.float() for t in inputs((1, 3, 8, 8), "standard", False, False))
    own = how("standard", False)
    assert torch.equal(ops.wavelet_modulus(z * scale, *own), ops.wavelet_modulus(z, *own) * scale)
    same = ops.wavelet_modulus_gradient(z * scale, grad, *own)
    assert torch.equal(same, ops.wavelet_modulus_gradient(z, grad, *own))


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize(("skip", "pairs"), [(False, False), (True, True)])
def test_a_number_that_is_not_finite_stays_in_its_map(skip: bool, pairs: bool, number: float) -> None:
    z, grad = (t.float() for t in inputs((1, 20, 4, 4), "standard", skip, pairs))
    own, width = how("standard", skip), 2 if skip else 1
    wanted = ops.wavelet_modulus(z, *own), ops.wavelet_modulus_gradient(z, grad, *own)
    assert (kernels.Filters(*in_tiles(BANKS["standard"], 4, 4, z.dtype, z.device)).maps) == (4, 8)

    def channels(t: Tensor) -> Tensor:
        """(20, 5 or 10, numbers) of the output."""
        halves = t[0].view(width, -1, *t.shape[2:])
        return torch.cat([halves[:, :20, None], halves[:, 20:].unflatten(1, (20, 4))], 2).movedim(1, 0).flatten(2)

    broken = z.clone()
    broken[(0, 7, 1, 2, *[1] * pairs)] = number
    got = channels(ops.wavelet_modulus(broken, *own))
    real = got.reshape(20, width * 5, -1)
    assert real[7].isnan().all()
    others = [k for k in range(20) if k != 7]
    assert differing_bits(real[others], channels(wanted[0]).reshape(20, width * 5, -1)[others]) == 0
    upstream = grad.clone()
    upstream[(0, 7, 1, 0, *[0] * (skip or pairs))] = number
    for tensors in ((broken, grad), (z, upstream)):
        got = ops.wavelet_modulus_gradient(*tensors, *own)
        assert got[:, 7].isnan().all()
        assert differing_bits(got[:, others], wanted[1][:, others]) == 0


def test_every_upstream_number_that_is_not_finite_reaches_the_gradient() -> None:
    z, grad = (t.float() for t in inputs((1, 1, 4, 4), "standard", True, True))
    for feature in range(10):
        for part in range(2):
            upstream = grad.clone()
            upstream[0, feature, 1, 0, part] = torch.nan
            # the imaginary part of a modulus is the constant 0
            constant = feature >= 5 and part == 1
            got = ops.wavelet_modulus_gradient(z, upstream, *how("standard", True))
            assert got.isnan().all().item() is not constant


def test_maps_that_do_not_fit_into_a_tile() -> None:
    z = draw(1, 1, LARGEST + 1, 4)
    message = r"z has shape \(1, 1, 33, 4\): backend='triton' takes maps of at most 32 x 32 pixels; larger ones"
    with pytest.raises(ValueError, match=message):
        wavelet_modulus(z, backend="triton")
    bank = BANKS["standard"]
    grad = torch.zeros(1, 5, bank.side(LARGEST + 1), 2)
    with pytest.raises(ValueError, match=message):
        ops.wavelet_modulus_gradient(z, grad, *how("standard", False))
    assert wavelet_modulus(z).shape == grad.shape
