# SPDX-License-Identifier: BSD-3-Clause
"""The kernels of wavelet_modulus and of its gradient against their reference, on every level; the registered ops."""

import pytest
import torch
from here import BACKENDS, LEVELS, assert_compiles_once, assert_same_for_threads, differing_bits, draw, laid_out, level
from tolerance import assert_close_to_float64
from torch import Tensor

from rainbow_fast import WaveletBank, wavelet_modulus

ops = torch.ops.rainbow_fast
F64 = torch.float64
BANKS = {
    **{name: WaveletBank.named(name) for name in ("standard", "a", "b")},
    "of one's own": WaveletBank(0.6, 1.1, 1.7, stride=1, taps=15),
}
# More maps than two vectors have lanes; whole vectors of outputs, parts of them, sides shorter than the filters.
SHAPES = [(2, 17, 8, 8), (1, 3, 32, 32), (3, 7, 5, 12), (1, 40, 2, 3), (2, 2, 33, 20)]


def arguments(bank: WaveletBank, skip: bool, backend: str | None = None) -> tuple:
    return [bank.phi_sigma, bank.psi_sigma, bank.xi], bank.stride, bank.taps, skip, backend


def inputs(shape: tuple[int, ...], bank: WaveletBank, skip: bool, pairs: bool) -> tuple[Tensor, Tensor]:
    """z and the gradient of the output, in float64, with numbers that float32 has."""
    z = draw(*shape, *[2] * pairs).double()
    out = ops.wavelet_modulus(z, *arguments(bank, skip, "reference"))
    return z, draw(*out.shape, seed=1).double()


def assert_right(shape: tuple[int, ...], name: str, skip: bool, pairs: bool, backend: str) -> None:
    bank = BANKS[name]
    z, grad = inputs(shape, bank, skip, pairs)
    exact, how = arguments(bank, skip, "reference"), arguments(bank, skip, backend)
    for op, tensors in ((ops.wavelet_modulus, (z,)), (ops.wavelet_modulus_gradient, (z, grad))):
        wanted = op(*tensors, *exact)
        torch.testing.assert_close(op(*tensors, *how), wanted, rtol=1e-11, atol=1e-12)  # near 0, moduli are less exact
        low = [t.float() for t in tensors]
        # a sum along columns of sums along rows, and its transpose
        assert_close_to_float64(op(*low, *how), wanted, op(*low, *exact), terms=4 * bank.taps)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
@pytest.mark.parametrize("name", LEVELS)
def test_every_level(name: str) -> None:
    with level(name):
        for number, bank in enumerate(BANKS):
            for shape in SHAPES:
                assert_right(shape, bank, skip=number % 2 == 1, pairs=number >= 2, backend="cpu")
        assert_right(SHAPES[0], "standard", skip=True, pairs=True, backend="cpu")
        assert_right(SHAPES[2], "a", skip=False, pairs=True, backend="cpu")


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
@pytest.mark.parametrize("skip", [False, True])
def test_every_level_has_a_gradient_of_zero_at_zero(skip: bool) -> None:
    z, bank = torch.zeros(1, 3, 6, 8), BANKS["b"]
    out = ops.wavelet_modulus(z, *arguments(bank, skip))
    upstream = torch.ones_like(out)
    upstream[:, : 15 if skip else 3] = 0  # what is linear in z
    for name in LEVELS:
        with level(name):
            assert (ops.wavelet_modulus(z, *arguments(bank, skip)) == 0).all()
            assert (ops.wavelet_modulus_gradient(z, upstream, *arguments(bank, skip)) == 0).all()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_every_level_scales_exactly(dtype: torch.dtype) -> None:
    """Squares of the largest numbers overflow, those of the smallest vanish."""
    z = draw(1, 3, 8, 8, dtype=dtype)
    grad = draw(1, 15, 4, 4, dtype=dtype, seed=1)
    how = arguments(BANKS["standard"], False)
    for name in LEVELS:
        with level(name):
            for scale in (2.0**100, 2.0**-90) if dtype == torch.float32 else (2.0**900, 2.0**-800):
                assert torch.equal(ops.wavelet_modulus(z * scale, *how), ops.wavelet_modulus(z, *how) * scale)
                same = ops.wavelet_modulus_gradient(z * scale, grad, *how)
                assert torch.equal(same, ops.wavelet_modulus_gradient(z, grad, *how))


@pytest.mark.parametrize("skip", [False, True])
def test_the_gradient_of_the_linear_channels_is_the_transpose(skip: bool) -> None:
    bank = BANKS["a"]
    for pairs in (False, True):
        z, v = (draw(2, 3, 7, 10, *[2] * pairs, dtype=F64, seed=seed) for seed in (0, 1))
        out = ops.wavelet_modulus(v, *arguments(bank, skip))
        upstream = draw(*out.shape, dtype=F64, seed=2)
        upstream[:, 15 if skip else 3 :] = 0
        gradient = ops.wavelet_modulus_gradient(z, upstream, *arguments(bank, skip))
        # some thousand terms in float64
        assert (gradient * v).sum().item() == pytest.approx((out * upstream).sum().item(), rel=1e-11)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_layouts_of_both_inputs(layout: str, pairs: bool) -> None:
    bank = BANKS["b"]
    z, grad = (t.float() for t in inputs((2, 5, 6, 10), bank, pairs, pairs))
    other = [laid_out(t, layout) for t in (z, grad)]
    assert [t.is_contiguous() for t in other] == [False, False]
    how = arguments(bank, pairs)
    assert torch.equal(ops.wavelet_modulus(other[0], *how), ops.wavelet_modulus(z, *how))
    wanted, got = ops.wavelet_modulus_gradient(z, grad, *how), ops.wavelet_modulus_gradient(*other, *how)
    assert got.is_contiguous() and torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_in_half_precision_is_that_of_float32_rounded(dtype: torch.dtype) -> None:
    for skip, pairs in ((False, False), (True, True)):
        z, grad = (t.to(dtype) for t in inputs((2, 5, 6, 10), BANKS["a"], skip, pairs))
        how = arguments(BANKS["a"], skip)
        wanted = ops.wavelet_modulus_gradient(z.float(), grad.float(), *how).to(dtype)
        assert torch.equal(ops.wavelet_modulus_gradient(z, grad.float() if skip else grad, *how), wanted)


def test_equal_bits_for_any_number_of_threads_and_beside_any_other_map() -> None:
    z, grad = (t.float() for t in inputs((7, 19, 12, 9), BANKS["b"], False, False))
    how = arguments(BANKS["b"], False)
    assert_same_for_threads(lambda: ops.wavelet_modulus(z, *how))
    assert_same_for_threads(lambda: ops.wavelet_modulus_gradient(z, grad, *how))
    alone = ops.wavelet_modulus(z[4:5, 7:8], *how)
    assert differing_bits(alone[:, 1:], ops.wavelet_modulus(z, *how)[4:5, 19 + 28 : 19 + 32]) == 0


def test_registration() -> None:
    for skip, pairs in ((False, False), (True, False), (False, True)):
        z, grad = inputs((2, 3, 5, 4), BANKS["b"], skip, pairs)
        z.requires_grad_()
        torch.library.opcheck(ops.wavelet_modulus, (z, *arguments(BANKS["b"], skip)))
        torch.library.opcheck(ops.wavelet_modulus_gradient, (z, grad, *arguments(BANKS["b"], skip)))


def test_compiles_once_for_all_sizes() -> None:
    def features(z: Tensor) -> Tensor:
        return wavelet_modulus(z, "b") + 1

    assert_compiles_once(features, [(draw(n, 7, 2 * n, 16),) for n in (3, 4, 5)], dynamic=True)


def test_a_training_step_compiles() -> None:
    def loss(z: Tensor) -> Tensor:
        return wavelet_modulus(z, "a", skip=True).abs().square().sum()

    gradients = []
    torch._dynamo.reset()
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        z = draw(2, 3, 8, 8).requires_grad_()
        function(z).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients)


def test_no_maps_but_z_and_the_output_are_saved() -> None:
    z = draw(2, 3, 8, 8).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        wavelet_modulus(z).sum().backward()
    assert saved == [z.shape]


Z, GRAD = draw(1, 2, 4, 4), draw(1, 10, 2, 2)
HOW = arguments(BANKS["standard"], False)
BAD = {
    "shape": (
        lambda: ops.wavelet_modulus(Z[..., None], *HOW),
        ValueError,
        r"z has shape \(1, 2, 4, 4, 1\): wanted \(N, c, H, W\), or \(N, c, H, W, 2\) for complex numbers, with sides",
    ),
    "complex": (
        lambda: ops.wavelet_modulus(Z + 0j, *HOW),
        TypeError,
        "z is torch.complex64: wanted one of torch.float32, torch.float64, torch.bfloat16, torch.float16",
    ),
    "constants": (
        lambda: ops.wavelet_modulus(Z, [0.8], *HOW[1:]),
        ValueError,
        r"constants=\[0.8\]: wanted phi_sigma, psi_sigma and xi",
    ),
    "stride": (
        lambda: ops.wavelet_modulus(Z, HOW[0], 3, *HOW[2:]),
        ValueError,
        "stride=3: wanted 1 <= stride <= 2",
    ),
    "backend": (
        lambda: wavelet_modulus(Z, backend="triton"),
        ValueError,
        "backend='triton' is not available on cpu",
    ),
    "shape of grad": (
        lambda: ops.wavelet_modulus_gradient(Z, GRAD[:, :5], *HOW),
        ValueError,
        r"grad has shape \(1, 5, 2, 2\): wanted that of the output, \(1, 10, 2, 2\)",
    ),
    "dtype of grad": (
        lambda: ops.wavelet_modulus_gradient(Z, GRAD.double(), *HOW),
        TypeError,
        "grad is torch.float64: wanted the dtype of the output, torch.float32",
    ),
    "device of grad": (
        lambda: ops.wavelet_modulus_gradient(Z, GRAD.to("meta"), *HOW),
        ValueError,
        "grad is on meta: wanted the device of z, cpu",
    ),
}


@pytest.mark.parametrize("call, error, message", BAD.values(), ids=BAD)
def test_bad_input_of_the_registered_ops(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
