# SPDX-License-Identifier: BSD-3-Clause
"""wavelet_modulus against its definition by FFT and against kymatio; layouts, dtypes, transforms, bad input."""

import math
from dataclasses import replace

import kymatio_maps
import pytest
import torch
import wavelets_by_fft
from here import draw, laid_out
from torch import Tensor

from rainbow_fast import WaveletBank, wavelet_modulus

BANKS = ["standard", "a", "b"]
# Both ways of computing: below and above 64 pixels. Odd sides, sides shorter than the filters, rectangles.
SIZES = [(32, 32), (16, 16), (8, 8), (7, 7), (6, 6), (5, 5), (4, 4), (3, 3), (2, 2), (7, 12), (2, 9), (33, 4)]
# Relative l2 errors of the default taps: 6e-9 (standard, a) and 7e-9 (b) for large maps of white noise. Maps with 1 to
# 100 outputs differ from this by less than a factor of three.
CUT = {"standard": 1.8e-8, "a": 1.8e-8, "b": 2.1e-8}


def whole(name: str) -> WaveletBank:
    """The bank with its whole tails."""
    return replace(WaveletBank.named(name), taps=41)


def by_fft(z: Tensor, name: str, skip: bool = False) -> Tensor:
    return torch.from_numpy(wavelets_by_fft.wavelet_modulus(z.numpy(), name, skip))


def complex_maps(*shape: int) -> Tensor:
    return torch.complex(draw(*shape, dtype=torch.float64), draw(*shape, dtype=torch.float64, seed=1))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", BANKS)
def test_is_the_definition(name: str, size: tuple[int, int]) -> None:
    z, w = draw(2, 3, *size, dtype=torch.float64), complex_maps(1, 2, *size)
    for maps in (z, w):
        for skip in (False, True):
            got, wanted = wavelet_modulus(maps, whole(name), skip=skip), by_fft(maps, name, skip)
            assert got.is_complex() == (skip or maps.is_complex())
            # Sums of some hundred products in float64; entries of the 1-D filters below 1e-14 are left out.
            torch.testing.assert_close(got.to(wanted.dtype), wanted, rtol=0, atol=1e-12)
            cut_off = wavelet_modulus(maps, name, skip=skip)
            assert (cut_off - wanted).norm() < CUT[name] * wanted.norm()


ERRORS = {  # as in the docstring
    "standard": {7: 7e-6, 9: 5.5e-9, 11: 1e-12},
    "a": {7: 5e-6, 9: 4e-9, 11: 1e-12},
    "b": {7: 2.5e-4, 9: 2e-6, 11: 8e-9},
}


@pytest.mark.parametrize("name", BANKS)
def test_errors_of_fewer_taps(name: str) -> None:
    """Over 36,000 numbers or more, another draw of the noise differs by a few percent; the table is rounded."""
    z = draw(4, 4, 32, 32, dtype=torch.float64)
    wanted = by_fft(z, name, skip=True)
    for taps, error in ERRORS[name].items():
        got = wavelet_modulus(z, replace(WaveletBank.named(name), taps=taps), skip=True)
        assert ((got - wanted).norm() / wanted.norm()).item() == pytest.approx(error, rel=0.25)


@pytest.mark.parametrize("side, outputs", [(224, (112, 224, 112)), (7, (3, 6, 3)), (5, (2, 4, 2)), (2, (1, 2, 1))])
def test_sides(side: int, outputs: tuple[int, int, int]) -> None:
    """Even sides are kept or halved; of an odd one, a pixel is lost: 7 -> 6 -> 3."""
    banks = [WaveletBank.named(name) for name in BANKS]
    assert tuple(bank.side(side) for bank in banks) == outputs
    for bank, wanted in zip(banks, outputs, strict=True):
        assert wavelet_modulus(torch.zeros(1, 1, side, 4), bank).shape == (1, 5, wanted, bank.side(4))


def test_is_kymatios_bank() -> None:
    """In float64. The fixture is in float32, in FFTs of 120 pixels up to 5: it agrees to 1.3e-7 of its norm."""
    got = wavelet_modulus(kymatio_maps.image().double()[None, None], skip=True)[0, :5]
    wanted = kymatio_maps.maps()
    assert (got - wanted).norm() < 3e-7 * wanted.norm()


@pytest.mark.parametrize(
    "name, beta", [("standard", (0.17642, 0.17012)), ("a", (0.17642, 0.17012)), ("b", (0.09397, 0.09362))]
)
def test_constants_of_the_banks(name: str, beta: tuple[float, float]) -> None:
    bank = WaveletBank.named(name)
    assert bank.beta == pytest.approx(beta, abs=5e-6)  # half of their last place
    filters = bank.filters()
    assert all(len(taps) == bank.taps for taps in filters.values())
    # sums of eleven numbers below one
    assert abs(filters["c"].sum()) < 1e-15 and abs(filters["s"].sum()) < 1e-15
    assert abs(filters["hc"].sum() ** 2 - bank.beta[1] * filters["g"].sum() ** 2) < 1e-15
    assert filters["phi"].sum() ** 2 == pytest.approx(1.0073 if name != "standard" else 1, abs=1e-4)


def test_a_constant_map_has_no_wavelets() -> None:
    for name in BANKS:
        out = wavelet_modulus(torch.ones(1, 2, 12, 8, dtype=torch.float64), WaveletBank.named(name))
        assert out[:, 2:].max() < 1e-14  # the taps sum to zero up to rounding
        torch.testing.assert_close(out[:, :2], out[:, :2].mean().expand_as(out[:, :2]))


def test_no_entry_of_a_filter_is_tiny() -> None:
    """Products with denormal numbers are many times slower."""
    for taps in whole("b").filters().values():
        assert abs(taps[taps != 0]).min() >= 1e-14 and (taps == 0).sum() > 10


@pytest.mark.parametrize("name", BANKS)
def test_order_of_the_channels(name: str) -> None:
    """Each channel by itself is what it is among others."""
    z = draw(2, 3, 6, 8, dtype=torch.float64)
    alone = [wavelet_modulus(z[:, c : c + 1], name, skip=True) for c in range(3)]
    linear = torch.cat([y[:, :1] for y in alone] + [y[:, 1:5] for y in alone], 1)
    moduli = torch.cat([y[:, 5:6] for y in alone] + [y[:, 6:] for y in alone], 1)
    out = wavelet_modulus(z, name, skip=True)
    torch.testing.assert_close(out, torch.cat([linear, moduli], 1))
    assert (out[:, 15:].imag == 0).all()
    torch.testing.assert_close(out[:, 15:].real, out[:, :15].abs())
    torch.testing.assert_close(wavelet_modulus(z, name), torch.cat([out[:, :3], out[:, 18:]], 1).real)


def test_a_wave_answers_at_its_own_angle() -> None:
    """cos(2.2 (rows + columns) / sqrt 2) is a wave at 45 degrees; with minus, it is one at -45."""
    i, j = torch.arange(32.0)[:, None], torch.arange(32.0)
    waves = [(i + j) / math.sqrt(2), i.expand(32, 32), (i - j) / math.sqrt(2), j.expand(32, 32)]
    for angle, phase in enumerate(waves):
        energy = wavelet_modulus(torch.cos(2.2 * phase)[None, None])[0, 1:].square().mean((1, 2))
        assert energy.argmax() == angle and energy.sum() < 1.6 * energy[angle]


@pytest.mark.parametrize("size", [(6, 7), (10, 9)], ids=str)
@pytest.mark.parametrize("name", BANKS)
def test_gradients(name: str, size: tuple[int, int]) -> None:
    z = draw(1, 2, *size, dtype=torch.float64).requires_grad_()
    w = complex_maps(1, 1, *size).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: wavelet_modulus(z, name), z, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradcheck(lambda w: wavelet_modulus(w, name, skip=True), w, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: wavelet_modulus(z, name, skip=True), z, fast_mode=True)


@pytest.mark.parametrize("size", [(6, 7), (10, 9)], ids=str)
def test_the_gradient_of_the_linear_half_is_its_transpose(size: tuple[int, int]) -> None:
    z, v = (draw(2, 1, *size, dtype=torch.float64, seed=seed) for seed in (0, 1))
    z.requires_grad_()
    out = wavelet_modulus(z, "b", skip=True)[:, :5]
    covector = complex_maps(*out.shape)
    (gradient,) = torch.autograd.grad((out * covector.conj()).real.sum(), z)
    linear = (wavelet_modulus(v, "b", skip=True)[:, :5] * covector.conj()).real.sum()
    assert (gradient * v).sum().item() == pytest.approx(linear.item(), rel=1e-12)  # some hundred terms in float64


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_the_gradient_at_zero_is_that_of_the_linear_channels(dtype: torch.dtype, skip: bool) -> None:
    z = torch.zeros(1, 1, 8, 8, dtype=dtype, requires_grad=True)
    out = wavelet_modulus(z, skip=skip)
    assert (out == 0).all()
    moduli = out[:, 5:] if skip else out[:, 1:]
    (gradient,) = torch.autograd.grad(moduli.real.sum(), z, create_graph=True)
    assert (gradient == 0).all()
    (gradient,) = torch.autograd.grad(out.real.sum(), z)
    assert gradient.isfinite().all() and gradient.abs().max() > 0.1


def test_scales_exactly() -> None:
    """Powers of two come out of every step, also where squares would overflow, or be zero."""
    z = draw(1, 2, 12, 8)
    for scale in (2.0**100, 2.0**-90):
        assert torch.equal(wavelet_modulus(z * scale), wavelet_modulus(z) * scale)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("name", BANKS)
def test_layouts(name: str, layout: str) -> None:
    z = draw(2, 3, 12, 10)
    out = wavelet_modulus(laid_out(z, layout), name)
    assert out.is_contiguous() and torch.equal(out, wavelet_modulus(z, name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_float32_rounded(dtype: torch.dtype) -> None:
    z = draw(2, 2, 8, 12, dtype=dtype)
    assert torch.equal(wavelet_modulus(z), wavelet_modulus(z.float()).to(dtype))
    assert torch.equal(wavelet_modulus(z, skip=True), wavelet_modulus(z.float(), skip=True))


def test_float32_and_complex64() -> None:
    z, w = draw(2, 2, 32, 32), complex_maps(2, 2, 32, 32)
    for exact in (z.double(), w):
        low = exact.to(torch.complex64 if exact.is_complex() else torch.float32)
        got, wanted = wavelet_modulus(low, "b"), wavelet_modulus(exact, "b")
        assert got.dtype == low.dtype
        assert (got - wanted).norm() < 3e-7 * wanted.norm()  # two sums of 32 products, each rounded to 6e-8


def test_autocast_changes_nothing() -> None:
    z = draw(2, 2, 12, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = wavelet_modulus(z)
    assert out.dtype == torch.float32 and torch.equal(out, wavelet_modulus(z))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (0, 3, 12, 10), (2, 0, 12, 10)], ids=str)
def test_nothing(shape: tuple[int, ...]) -> None:
    N, c, H, W = shape
    assert wavelet_modulus(torch.zeros(shape)).shape == (N, 5 * c, H // 2, W // 2)
    assert wavelet_modulus(torch.zeros(shape), skip=True).shape == (N, 10 * c, H // 2, W // 2)
    assert wavelet_modulus(torch.zeros(shape) + 0j).shape == (N, 5 * c, H // 2, W // 2)


@pytest.mark.parametrize("size", [(8, 8), (16, 16)], ids=str)
def test_nan_is_passed_on(size: tuple[int, int]) -> None:
    z = draw(1, 2, *size)
    z[0, 1, 0, 0] = torch.nan
    out = wavelet_modulus(z)
    assert out[:, 1, 0, 0].isnan().all() and out[:, 6:, 0, 0].isnan().all()
    assert not out[:, [0, 2, 3, 4, 5]].isnan().any()


@pytest.mark.parametrize("size", [(4, 6), (10, 9)], ids=str)
def test_transforms_keep_no_tensor_of_theirs(size: tuple[int, int]) -> None:
    """A bank that was never used is used first inside of each transform, and then outside."""
    z = draw(3, 1, 2, *size, dtype=torch.float64)
    for seed, transform in enumerate((torch.vmap, torch.func.jacrev, torch.func.jacfwd)):
        bank = WaveletBank(0.7, 0.9 + seed / 64, 2.0, taps=5)
        inside = transform(lambda maps, bank=bank: wavelet_modulus(maps, bank))(z if seed == 0 else z[0])
        outside = torch.stack([wavelet_modulus(maps, bank) for maps in z])
        assert type(outside) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(outside)
        if seed == 0:
            torch.testing.assert_close(inside, outside)
        else:
            by_torch = torch.autograd.functional.jacobian(lambda maps, bank=bank: wavelet_modulus(maps, bank), z[0])
            torch.testing.assert_close(inside, by_torch)


def test_first_use_in_inference_mode() -> None:
    bank = WaveletBank(0.7, 0.85, 1.9, taps=5)
    z = draw(1, 1, 4, 4)
    with torch.inference_mode():
        first = wavelet_modulus(z, bank)
    out = wavelet_modulus(z.requires_grad_(), bank)
    out.sum().backward()
    assert torch.equal(first, out) and z.grad.isfinite().all()


def test_under_compile() -> None:
    z = draw(2, 2, 10, 8)
    compiled = torch.compile(lambda z: wavelet_modulus(z, "a") + 1, backend="eager")
    torch.testing.assert_close(compiled(z), wavelet_modulus(z, "a") + 1)


Z = draw(1, 2, 4, 4)
BAD = {
    "array": (lambda: wavelet_modulus(Z.numpy()), TypeError, "z is a numpy.ndarray: wanted a torch.Tensor"),
    "integers": (lambda: wavelet_modulus(Z.long()), TypeError, r"z is torch.int64: wanted one of torch.float32, "),
    "image": (
        lambda: wavelet_modulus(Z[0]),
        ValueError,
        r"z has shape \(2, 4, 4\): wanted maps \(N, c, H, W\) with sides of at least 2",
    ),
    "one-pixel": (
        lambda: wavelet_modulus(Z[..., :1]),
        ValueError,
        r"z has shape \(1, 2, 4, 1\): wanted maps \(N, c, H, W\) with sides of at least 2",
    ),
    "skip": (lambda: wavelet_modulus(Z, skip=1), TypeError, "skip=1: wanted True or False"),
    "name": (
        lambda: wavelet_modulus(Z, "c"),
        ValueError,
        "bank='c': wanted one of standard, a, b, or a WaveletBank",
    ),
    "bank": (lambda: wavelet_modulus(Z, 3), TypeError, "bank=3: wanted a string or a WaveletBank, got int"),
    "width": (lambda: WaveletBank(0.8, 0, 2.0), ValueError, "psi_sigma=0: wanted a number above 0"),
    "frequency": (lambda: WaveletBank(0.8, 0.8, math.nan), ValueError, "xi=nan: wanted a number above 0"),
    "text": (lambda: WaveletBank("0.8", 0.8, 2.0), TypeError, "phi_sigma is a str: wanted a number"),
    "stride": (lambda: WaveletBank(0.8, 0.8, 2.0, stride=3), ValueError, "stride=3: wanted 1 <= stride <= 2"),
    "even": (
        lambda: WaveletBank(0.8, 0.8, 2.0, taps=8),
        ValueError,
        "taps=8: wanted an odd number, so that the filters have a middle",
    ),
    "short": (lambda: WaveletBank(0.8, 0.8, 2.0, taps=1), ValueError, "taps=1: wanted taps >= 3"),
    "side": (lambda: WaveletBank.named("a").side(1), ValueError, "side=1: wanted side >= 2"),
}


@pytest.mark.parametrize("call, error, message", BAD.values(), ids=BAD)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
