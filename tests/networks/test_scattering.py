# SPDX-License-Identifier: BSD-3-Clause
"""Learned scattering networks: published sizes, the formula, their parts, training, files, options and errors."""

import copy
import math

import pytest
import torch
from here import draw
from torch import Tensor, nn

from rainbow_fast import wavelet_modulus
from rainbow_fast.networks import accuracy, load_weights, save_weights, scattering, train
from rainbow_fast.networks.scattering import ComplexBatchNorm2d, RealConv2d, Split, UnitNorm, Wavelets

VARIANTS = {
    "plain": {"J": 3},
    "no-norm": {"J": 3, "norm": False},
    "skip": {"J": 3, "skip": True},
    "complex": {"J": 3, "complex": True},
    "complex-skip": {"J": 3, "complex": True, "skip": True},
    "seven": {"J": 7},
    "seven-skip": {"J": 7, "skip": True},
    "ten": {"J": 10, "complex": True, "skip": True, "norm": False, "image_size": 64},
}
small = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def build(options: dict, seed: int | None = 0) -> nn.Sequential:
    return scattering(**options, width=1 / 16, scale_last=True, seed=seed)


def images(options: dict, number: int = 4) -> Tensor:
    size = options.get("image_size", 32)
    return draw(number, 3, size, size)


def blocks(net: nn.Sequential) -> list[nn.Sequential]:
    return [part for name, part in net.named_children() if name.startswith("block")]


@pytest.mark.parametrize(
    "options, convolutions, classifier",
    [
        ({"J": 3}, 861_120, 20_480),
        ({"J": 7}, 6_104_000, 20_480),
        ({"J": 7, "skip": True}, 12_208_000, 40_960),
        ({"J": 10, "skip": True, "classes": 1000}, 13_579_200, 4_608_000 + 1000 + 2 * 512),  # biases; gains and shifts
    ],
    ids=["3", "7", "7-skip", "10"],
)
def test_has_the_published_parameters(options: dict, convolutions: int, classifier: int) -> None:
    net = scattering(**options)
    count = [sum(value.numel() for value in block.parameters()) for block in blocks(net)]
    assert sum(count) == convolutions
    assert sum(value.numel() for value in net.parameters()) - sum(count) == classifier


@pytest.mark.parametrize(
    "options, sides, channels",
    [
        ({"J": 3}, [16, 8, 4, 2], [64, 128, 256, 512]),
        ({"J": 3, "scale_last": True}, [16, 8, 4, 2], [64, 128, 256, 32]),
        ({"J": 7}, [32, 16, 16, 8, 8, 4, 4, 2], [64, 128, 256, *[32] * 5]),
        ({"J": 10}, [112, 112, 56, 56, 28, 28, 14, 14, 7, 6, 3], [32, 64, 64, 128, 256, *[512] * 5, 256]),
    ],
    ids=["3", "3-scale-last", "7", "10"],
)
def test_has_the_published_sides_and_widths(options: dict, sides: list[int], channels: list[int]) -> None:
    """At a sixteenth of the width, which a last width of J = 3 does not take part in."""
    net = scattering(**options, width=1 / 16)
    z = torch.zeros(1, 3, 224, 224) if options["J"] == 10 else torch.zeros(1, 3, 32, 32)
    shapes = []
    for block in blocks(net.eval()):
        z = block(z)
        shapes.append(tuple(z.shape))
    widths = [each // 16 if each >= 64 or options["J"] == 10 else each for each in channels]
    if options == {"J": 3}:
        widths[-1] = 512
    assert shapes == [(1, width, side, side) for width, side in zip(widths, sides, strict=True)]


@small
def test_is_its_formula(options: dict) -> None:
    """In evaluation, after the running averages have seen two batches; complex arithmetic, with weights as matrices."""
    net, x = build(options), images(options)
    for _ in range(2):
        net(x)
    net.eval()
    z: Tensor = x
    for block in blocks(net):
        phi = wavelet_modulus(z, block.wavelets.bank, skip=options.get("skip", False)).to(torch.complex64)
        mean, variance = block.std.running_mean, block.std.running_var
        mean = torch.view_as_complex(mean) if mean.dim() == 2 else mean
        phi = (phi - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
        z = torch.einsum("dc,nchw->ndhw", block.linear.weight[..., 0, 0].to(phi.dtype), phi)
        if options.get("norm", True):
            z = z / z.abs().square().sum(1, keepdim=True).sqrt()
        z = z if options.get("skip") or options.get("complex") else z.real
    if z.is_complex():
        z = torch.stack([z.real, z.imag], 2).flatten(1, 2)
    features = (z - net.bn.running_mean[:, None, None]) / (net.bn.running_var + 1e-5).sqrt()[:, None, None]
    if options["J"] == 10:  # gains of 1 and shifts of 0, as they start
        assert (net.bn.weight == 1).all() and (net.bn.bias == 0).all()
    wanted = nn.functional.linear(features.flatten(1), net.fc.weight, net.fc.bias)
    # float32 through up to eleven blocks; a modulus near 0 and a division by a norm magnify roundings of 1e-7
    torch.testing.assert_close(net(x), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


@small
def test_gradients_are_finite_also_for_images_of_one_colour(options: dict) -> None:
    colours = torch.linspace(-1, 1, len(images(options)))[:, None, None, None].expand_as(images(options))
    for x in (images(options), torch.zeros_like(images(options)), colours):
        net = build(options)
        net(x).square().sum().backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in net.parameters())


def test_a_factor_of_the_weights_changes_nothing() -> None:
    """N follows every convolution, and powers of two change no rounding."""
    for options in (VARIANTS["plain"], VARIANTS["complex-skip"]):
        net, x = build(options), images(options)
        before = net(x)
        with torch.no_grad():
            for factor, block in zip((8.0, 0.25, 2.0, 0.5), blocks(net), strict=True):
                block.linear.weight *= factor
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("training", [True, False])
def test_complex_batch_norm_of_real_numbers_is_that_of_torch(training: bool) -> None:
    z, ours, theirs = 3 * draw(5, 4, 3, 2) + 1, ComplexBatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
    for seed in range(3):
        maps = z + draw(5, 4, 3, 2, seed=seed)
        for part, seen in ((ours, maps + 0j), (theirs, maps)):
            part.train()(seen)
            part.train(training)
    got = ours(z + 0j)
    torch.testing.assert_close(got.real, theirs(z))
    assert (got.imag == 0).all() and ours.num_batches_tracked == theirs.num_batches_tracked
    torch.testing.assert_close(ours.running_mean[:, 0], theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_complex_maps_in_networks_of_half_precision(dtype: torch.dtype, training: bool) -> None:
    """Buffers in half precision, maps in single: the result has the error of the rounded averages."""
    z, exact = torch.complex(*draw(2, 5, 4, 3, 2)) + 1, ComplexBatchNorm2d(4)
    exact.train()(z)
    rounded = copy.deepcopy(exact).to(dtype).train(training)
    out, wanted = rounded(z), exact.train(training)(z)
    assert out.dtype == z.dtype and (out - wanted).abs().max() <= 4 * torch.finfo(dtype).eps * wanted.abs().max()


def test_complex_batch_norm_turns_with_its_input() -> None:
    z = torch.complex(draw(4, 3, 5, 5), draw(4, 3, 5, 5, seed=1) + 2)
    std = ComplexBatchNorm2d(3)
    out = std(z)
    torch.testing.assert_close(std(z * 1j), out * 1j)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3, dtype=out.dtype), atol=1e-6, rtol=0)  # 100 terms
    torch.testing.assert_close(out.abs().square().mean((0, 2, 3)), torch.ones(3))


def test_unit_norm() -> None:
    z = torch.complex(draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1))
    z[0, :, 1, 2] = 0
    z.requires_grad_()
    out = UnitNorm()(z)
    norms = out.detach().abs().square().sum(1)
    assert norms[0, 1, 2] == 0 and norms.sum().item() == pytest.approx(31, rel=1e-6)  # 31 ones in float32
    (gradient,) = torch.autograd.grad(out, z, draw(2, 3, 4, 4) + 0j)
    assert gradient.isfinite().all() and (gradient[0, :, 1, 2] == 0).all() and (gradient[1] != 0).all()
    assert torch.equal(UnitNorm()(z.detach() * 16), out.detach())
    x = draw(1, 3, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(UnitNorm(), x)


def test_split_alternates() -> None:
    z = torch.complex(draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1))
    out = Split()(z)
    assert torch.equal(out[:, ::2], z.real) and torch.equal(out[:, 1::2], z.imag)


def test_real_weights_act_on_both_parts() -> None:
    z = torch.complex(draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1))
    layer = RealConv2d(3, 2, 1, bias=False)
    out = layer(z)
    for part in ("real", "imag"):
        wanted = nn.functional.conv2d(getattr(z, part), layer.weight)
        torch.testing.assert_close(getattr(out, part), wanted)


@small
def test_a_seed_fixes_the_weights_and_leaves_the_global_state(options: dict) -> None:
    before = torch.get_rng_state()
    first, second, other = build(options, 3), build(options, 3), build(options, 4)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.block1.linear.weight, other.block1.linear.weight)
    torch.manual_seed(3)
    assert torch.equal(first.block2.linear.weight, build(options, None).block2.linear.weight)


def test_initial_weights() -> None:
    for part in (lambda net: net.block2.linear.weight, lambda net: net.fc.weight):
        weight = part(scattering(3, 1 / 2, seed=0))
        bound = 1 / math.sqrt(weight.shape[1])
        assert 0.99 * bound < weight.abs().max() <= bound
    net = scattering(3, 1 / 2, complex=True, seed=0)
    for block in blocks(net)[:2]:  # (32, 15) has orthonormal columns, (64, 160) orthonormal rows
        weight = block.linear.weight[..., 0, 0]
        gram = weight @ weight.mH if weight.shape[0] < weight.shape[1] else weight.mH @ weight
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype), atol=1e-5, rtol=0)  # 160 float32 terms
        assert 0.8 < weight.real.square().sum() / weight.imag.square().sum() < 1.25


@small
def test_weights_come_back_bit_for_bit(options: dict, tmp_path) -> None:
    net, other, x = build(options), build(options, 1), images(options)
    net(x)
    save_weights(net, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(net.eval()(x), other.eval()(x))


def test_complex_weights_stay_single_in_a_module_of_doubles() -> None:
    net, x = build(VARIANTS["complex"]).double(), images(VARIANTS["complex"]).double()
    assert net.block1.linear.weight.dtype == torch.complex64 and net.fc.weight.dtype == torch.float64
    for part in (net.train(), net.eval()):
        part.block1(x)


def test_double_precision_and_channels_last() -> None:
    for options in (VARIANTS["plain"], VARIANTS["skip"]):
        net, x = build(options), images(options)
        wanted = build(options).double()(x.double())
        assert wanted.dtype == torch.float64
        # four blocks in float32, where moduli near 0 and divisions magnify roundings
        torch.testing.assert_close(net(x).double(), wanted, rtol=0, atol=1e-4)
        turned = build(options).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(turned.double(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"skip": True}, {"complex": True}], ids=["plain", "skip", "complex"])
def test_learns(options: dict) -> None:
    """Waves at four angles in noise: far above chance (0.25) after a few steps of the published method."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (256,), generator=generator)
    angle = y * math.pi / 4
    i, j = torch.arange(16.0)[:, None], torch.arange(16.0)
    phase = 1.5 * (angle.cos()[:, None, None] * i + angle.sin()[:, None, None] * j)
    noise = torch.randn(256, 1, 16, 16, generator=generator)
    x = torch.cos(phase + 6 * torch.rand(256, 1, 1, generator=generator))[:, None] + noise
    net = scattering(3, 1 / 16, scale_last=True, image_channels=1, image_size=16, classes=4, seed=0, **options)
    losses: list[float] = []
    train(net, x[:192], y[:192], epochs=6, batch_size=32, lr=0.05, progress=lambda *done: losses.append(done[2]))
    assert losses[-1] < 0.7 * losses[0] and accuracy(net, x[192:], y[192:]) > 0.6


def test_nan_is_passed_on() -> None:
    """In evaluation, one image does not change the others."""
    for options in (VARIANTS["plain"], VARIANTS["skip"]):
        net, x = build(options).eval(), images(options)
        wanted = net(x)
        x[1, 0, 3, 4] = math.nan
        out = net(x)
        assert out[1].isnan().any() and torch.equal(out[[0, 2, 3]], wanted[[0, 2, 3]])


def test_weights_of_another_width_are_refused(tmp_path) -> None:
    save_weights(scattering(3, 1 / 8, seed=0), tmp_path / "w.safetensors")
    wanted = r"block1.linear.weight has shape \(8, 15, 1, 1\), wanted \(16, 15, 1, 1\)"
    with pytest.raises(ValueError, match=f"path: .*w.safetensors does not fit the network: {wanted}"):
        load_weights(scattering(3, 1 / 4, seed=0), tmp_path / "w.safetensors")


def test_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        net = scattering(10, complex=True, skip=True)
    assert all(value.is_meta for value in net.state_dict().values())


def test_options() -> None:
    net = scattering(3, 1 / 8, norm=False, image_channels=1, image_size=48, classes=7, seed=0)
    assert net(torch.zeros(2, 1, 48, 48)).shape == (2, 7)
    assert [name for name, _ in net.named_children()] == [*(f"block{i}" for i in range(1, 5)), "bn", "flatten", "fc"]
    assert [name for name, _ in net.block1.named_children()] == ["wavelets", "std", "linear"]
    assert not net.bn.affine and net.fc.bias is None
    assert "taps=11), skip=True" in repr(Wavelets("b", True))
    names = [name for name, _ in scattering(3, 1 / 8, skip=True).named_children()]
    assert names[4:] == ["split", "bn", "flatten", "fc"]


BAD = {
    "J": (lambda: scattering(4), ValueError, "J=4: wanted 3, 7 or 10"),
    "J-kind": (lambda: scattering(3.0), TypeError, "J=3.0: wanted an integer, got float"),
    "width": (lambda: scattering(3, 0), ValueError, "width=0: wanted a number above 0"),
    "width-kind": (lambda: scattering(3, "1"), TypeError, "width is a str: wanted a number"),
    "narrow": (
        lambda: scattering(3, 1 / 100),
        ValueError,
        "width=0.01: leaves 0 channels to a block, wanted at least 1",
    ),
    "flag": (lambda: scattering(3, skip=1), TypeError, "skip=1: wanted True or False"),
    "norm": (lambda: scattering(3, norm=None), TypeError, "norm=None: wanted True or False"),
    "classes": (lambda: scattering(3, classes=0), ValueError, "classes=0: wanted classes >= 1"),
    "size": (
        lambda: scattering(3, image_size=8),
        ValueError,
        "image_size=8: leaves a map of side 1 to block 4, wanted 2 or more",
    ),
    "seed": (lambda: scattering(3, seed=-1), ValueError, r"seed=-1: wanted 0 <= seed < 2\^63"),
    "real-maps": (
        lambda: ComplexBatchNorm2d(3)(torch.zeros(2, 3, 4, 4)),
        ValueError,
        r"z is torch.float32 \(2, 3, 4, 4\): wanted complex maps \(N, 3, H, W\) to standardise",
    ),
    "complex-images": (
        lambda: scattering(3, 1 / 8)(torch.zeros(2, 3, 32, 32) + 0j),
        ValueError,
        r"z is torch.complex64 \(2, 3, 32, 32\): wanted real maps \(N, 3, H, W\)",
    ),
    "complex-images-and-weights": (
        lambda: scattering(3, 1 / 8, complex=True, skip=True)(torch.zeros(2, 3, 32, 32) + 0j),
        ValueError,
        r"z is torch.complex64 \(2, 3, 32, 32\): wanted real maps \(N, 3, H, W\)",
    ),
    "channels": (
        lambda: scattering(3, 1 / 8)(torch.zeros(2, 1, 32, 32)),
        ValueError,
        r"z is torch.float32 \(2, 1, 32, 32\): wanted real maps \(N, 3, H, W\)",
    ),
    "channels-of-complex-maps": (
        lambda: scattering(3, 1 / 8, skip=True).block2(torch.zeros(2, 3, 16, 16) + 0j),
        ValueError,
        r"z is torch.complex64 \(2, 3, 16, 16\): wanted maps \(N, 8, H, W\)",
    ),
    "any-number-of-complex-channels": (
        lambda: Wavelets(real=True)(torch.zeros(2, 3, 8, 8) + 0j),
        ValueError,
        r"z is torch.complex64 \(2, 3, 8, 8\): wanted real maps \(N, c, H, W\)",
    ),
    "small-images": (
        lambda: scattering(3, 1 / 8).eval()(torch.zeros(2, 3, 8, 8)),
        ValueError,
        r"z has shape \(2, 32, 1, 1\): wanted maps \(N, c, H, W\) with sides of at least 2",
    ),
    "bank": (lambda: Wavelets("c"), ValueError, "bank='c': wanted one of standard, a, b, or a WaveletBank"),
    "bank-kind": (lambda: Wavelets(3), TypeError, "bank=3: wanted a string or a WaveletBank, got int"),
    "one-value": (
        lambda: ComplexBatchNorm2d(3)(torch.zeros(1, 3, 1, 1) + 0j),
        ValueError,
        "z has 1 values in each channel: wanted more than one in training",
    ),
}


@pytest.mark.parametrize("call, error, message", BAD.values(), ids=BAD)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
