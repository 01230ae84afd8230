# SPDX-License-Identifier: BSD-3-Clause
"""Means of many standard deviations: variances, covariances and everything computed from them are as in float64."""

import copy

import pytest
import torch
from here import draw
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.rainbow.alignment import Regression
from rainbow_fast.rainbow.channel_moments import PIECE, ChannelMoments

N = 3000
RATIOS = (0.0, 1e3, 1e4, 1e5)  # means over standard deviations
# x - center is exact in float32 if x is within a factor of two of the center. The rest are sums of some hundred numbers
# of the size of the deviations, each rounded to 6e-8.
SUMS = 1e-6


def far(ratio: float, *shape: int, seed: int = 0) -> Tensor:
    """Float32 channels with several standard deviations, and with means of `means` deviations."""
    scale = torch.tensor([1.0, 3.0, 1e-3, 1e3])[: shape[1]].view(1, -1, *[1] * (len(shape) - 2))
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0])[: shape[1]].view(1, -1, *[1] * (len(shape) - 2))
    return (draw(*shape, seed=seed) + ratio * sign) * scale


def rows(x: Tensor) -> Tensor:
    return x.double().movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", [(N, 4), (40, 4, 7, 11)], ids=["rows", "maps"])
def test_variances(ratio: float, shape: tuple[int, ...]) -> None:
    x, whole = far(ratio, *shape), ChannelMoments()
    whole.update(x)
    exact = rows(x)
    variance, mean = exact.var(0, correction=0), exact.mean(0)
    torch.testing.assert_close(whole.variance(), variance, rtol=SUMS, atol=0)
    torch.testing.assert_close(whole.variance(unbiased=True), exact.var(0), rtol=SUMS, atol=0)
    assert ((whole.mean - mean).abs() <= SUMS * variance.sqrt()).all()
    assert whole.spread == pytest.approx(float(variance.sum()), rel=SUMS)
    assert whole.power == pytest.approx(float(exact.square().sum(1).mean()), rel=SUMS)
    about, factor = mean + variance.sqrt(), 1 / variance
    wanted = float(((exact - about) * factor).square().sum(1).mean())
    assert whole.second_moment_about(about, factor) == pytest.approx(wanted, rel=2 * SUMS)
    assert not whole.flat.any()


def test_a_center_is_a_number_of_the_dtype_with_few_bits() -> None:
    """If a value occurs again and again, its distance from the center and its square have only few bits."""
    moments = ChannelMoments()
    moments.update(draw(N, 4).relu_() + 4)
    assert moments.center is not None and (moments.center > 4).all()
    assert torch.equal(moments.center * 64, (moments.center * 64).round())
    moments = ChannelMoments()
    moments.update(draw(N, 4).relu_())
    assert moments.center is not None and not moments.center.any(), (
        "a mean of 0.7 standard deviations is not subtracted"
    )
    moments = ChannelMoments()
    moments.update(far(1e5, N, 4))
    assert moments.center is not None and torch.equal(moments.center.float().double(), moments.center)


@pytest.mark.parametrize("ratio", [0.0, 1e4])
@pytest.mark.parametrize("order", ["random", "sorted"])
def test_any_partition_gives_the_same(ratio: float, order: str) -> None:
    x = far(ratio, N, 4)
    x = x.sort(0).values if order == "sorted" else x
    y = x.flip(1) + draw(N, 4, seed=1)
    whole = rf.CrossCovariance().update(x, y)
    for starts in ([0, 1, 2, N], [0, 700, 701, 2000, N], [0, 0, N, N]):
        parts = rf.CrossCovariance()
        for start, stop in zip(starts, starts[1:], strict=False):
            parts.update(x[start:stop], y[start:stop])
        assert parts.count == N
        deviation = (x.double().std(0)[:, None], y.double().std(0)[:, None])
        # The first sample of a sorted set is about four deviations off; the squares of these are summed.
        within = 20 * SUMS * deviation[0] * deviation[1].T
        assert ((parts.covariance() - whole.covariance()).abs() <= within).all()
        torch.testing.assert_close(parts.x.variance(), whole.x.variance(), rtol=20 * SUMS, atol=0)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("sides", ["one", "two"])
def test_covariances(ratio: float, sides: str) -> None:
    x, y = far(ratio, N, 4), None if sides == "one" else far(2 * ratio, N, 3, seed=1) + far(0, N, 3)
    moments = rf.CrossCovariance()
    for part in (slice(0, 1200), slice(1200, N)):
        moments.update(x[part], None if y is None else y[part])
    a, b = x.double(), (x if y is None else y).double()
    exact = (a - a.mean(0)).T @ (b - b.mean(0)) / N
    scale = torch.outer(a.std(0), b.std(0))
    assert ((moments.covariance() - exact).abs() <= SUMS * scale).all()
    magnitude = a.abs().T @ b.abs() / N
    assert ((moments.compute() - a.T @ b / N).abs() <= SUMS * scale + 1e-14 * magnitude).all()
    if y is None:
        assert torch.equal(moments.compute(), moments.compute().T)
    about = b.mean(0) + b.std(0)
    wanted = moments.covariance() + torch.outer(moments.mean_x, moments.mean_y - about)
    torch.testing.assert_close(moments.consume(about), wanted, rtol=1e-13, atol=0)  # float64: a sum of three


def test_accumulators_of_other_centers_merge() -> None:
    """Sums are moved in float64. This loses somewhat less than the ten of its 16 digits that the squared ratio has."""
    x, y = (torch.cat([far(ratio, 500, 4, seed=seed) for ratio in (0.0, 1e2, 1e5)]).double() for seed in (0, 1))
    parts = [rf.CrossCovariance().update(x[s : s + 500], y[s : s + 500]) for s in (0, 500, 1000)]
    assert parts[0].x.center is not None and (parts[0].x.center != parts[2].x.center).all()
    merged = parts[0].merge(parts[1]).merge(parts[2])
    exact = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
    torch.testing.assert_close(merged.covariance(), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(merged.x.variance(), x.var(0, correction=0), rtol=1e-12, atol=0)
    moments = ChannelMoments()
    moments.merge(ChannelMoments())
    for start in (0, 500, 1000):
        part = ChannelMoments()
        part.update(x[start : start + 500])
        moments.merge(part)
    torch.testing.assert_close(moments.variance(), x.var(0, correction=0), rtol=1e-12, atol=0)
    pooled, exact = moments.pooled(2), x.view(-1, 2, 2).transpose(0, 1).flatten(1)  # runs of two channels
    torch.testing.assert_close(pooled.variance(), exact.var(1, correction=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(pooled.mean, exact.mean(1), rtol=1e-12, atol=0)


def test_a_state_without_centers_is_about_zero() -> None:
    x, y = draw(50, 3, dtype=torch.float64) + 2, draw(50, 4, dtype=torch.float64, seed=1) + 1
    old = {"cross": x.T @ y, "count": torch.tensor(50)}
    for side, t in (("x", x), ("y", y)):
        old |= {f"total_{side}": t.sum(0), f"square_{side}": t.square().sum(0)}
    restored, wanted = rf.CrossCovariance(), rf.CrossCovariance().update(x, y).update(x, y)
    restored.load_state_dict(old)
    restored.update(x, y)
    # 1e-12: float64 sums of 100 products about zero, with means of one to two deviations
    torch.testing.assert_close(restored.compute(), wanted.compute(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(restored.covariance(), wanted.covariance(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(restored.x.variance(), wanted.x.variance(), rtol=1e-12, atol=0)
    assert {"center_x", "center_y"} < set(restored.state_dict())
    with pytest.raises(ValueError, match="state has the keys .*: wanted"):
        restored.load_state_dict({key: t for key, t in wanted.state_dict().items() if key != "center_x"})
    with pytest.raises(ValueError, match=r"state: center_y has shape \(3,\), wanted \(4,\)"):
        restored.load_state_dict(wanted.state_dict() | {"center_y": torch.zeros(3)})


def test_batches_of_another_dtype() -> None:
    """A center in float64 is not a float32 number, so the later batch is summed in float64."""
    x = draw(400, 3, dtype=torch.float64) * 1e-3 + 1 / 3
    moments = rf.CrossCovariance().update(x[:200]).update(x[200:].float())
    used = torch.cat([x[:200], x[200:].float().double()])
    torch.testing.assert_close(moments.covariance(), (used - used.mean(0)).T @ (used - used.mean(0)) / 400)
    for dtype in (torch.bfloat16, torch.float16):
        y = (draw(400, 3) + 100).to(dtype)
        moments = rf.CrossCovariance().update(y)
        exact = y.double() - y.double().mean(0)
        torch.testing.assert_close(moments.covariance(), exact.T @ exact / 400, rtol=SUMS, atol=SUMS)
    with pytest.raises(TypeError, match="y is torch.float32: wanted the dtype of x, torch.float64"):
        rf.CrossCovariance().update(x, x.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 24, 33, 1000])
def test_channels_that_do_not_vary(dtype: torch.dtype, count: int) -> None:
    """Equal numbers have exactly zero variance and covariances, whatever they are."""
    x = torch.tensor([0.1, 0.0, -1e6 / 3, 1e-30]).to(dtype).expand(count, 4)
    moments = rf.CrossCovariance().update(x).update(x)
    assert torch.equal(moments.x.variance(), torch.zeros(4, dtype=torch.float64)) and moments.x.constant
    assert torch.equal(moments.covariance(), torch.zeros(4, 4, dtype=torch.float64))
    assert torch.equal(moments.mean_x, x[0].double())
    noisy = ChannelMoments()  # one more than the last place of some
    noisy.update(torch.nextafter(x[:, :1].float(), torch.tensor(torch.inf)) if dtype == torch.float32 else x)
    assert noisy.constant


def test_squares_outside_the_range_of_float32() -> None:
    x = draw(2000, 3)
    for scale in (1e-30, 1e25):
        moments = ChannelMoments()
        moments.update(x * scale)
        torch.testing.assert_close(moments.variance(), (x * scale).double().var(0, correction=0), rtol=SUMS, atol=0)
        maps = ChannelMoments()
        maps.update((x * scale).view(20, 100, 3).movedim(2, 1))
        torch.testing.assert_close(maps.variance(), moments.variance(), rtol=SUMS, atol=0)
    for scale in (1e-100, 1e100):
        y = (x + 1).double() * scale
        covariance = rf.CrossCovariance().update(y).covariance()
        exact = (x.double() - x.double().mean(0)) * scale
        torch.testing.assert_close(covariance, exact.T @ exact / len(x), rtol=SUMS, atol=SUMS * scale**2)


def test_pieces() -> None:
    """A batch of more than two pieces, the last one small, and batches of less than one piece."""
    size = PIECE // 60
    x, y = far(1e4, 2 * size + 9, 4, 5, 3), far(1e3, 2 * size + 9, 2, 5, 3, seed=1)
    at_once, batches = rf.CrossCovariance().update(x, y), rf.CrossCovariance()
    for some in torch.arange(len(x)).split(size // 2):
        batches.update(x[some], y[some])
    deviations = torch.outer(at_once.x.variance().sqrt(), at_once.y.variance().sqrt())
    assert ((at_once.covariance() - batches.covariance()).abs() <= SUMS * deviations).all()


# Sampled networks


def shifted_net(kind: str, b: float) -> tuple[nn.Module, Tensor]:
    """A network whose first site has means of about b and standard deviations of about 1."""
    torch.manual_seed(1)
    if kind == "maps":
        first: list[nn.Module] = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        rest: list[nn.Module] = [nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
        x = draw(150, 1, 8, 8)
    else:
        norm = [nn.BatchNorm1d(24, momentum=None)] if kind == "normalised" else []
        first, rest, x = (
            [nn.Linear(16, 24), nn.ReLU(), *norm],
            [nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)],
            draw(N, 16),
        )
    net = nn.Sequential(*first, *rest)
    net[0].bias.data += b
    if kind == "normalised":
        net.double().train()(x.double())
    return net.float().eval(), x


def first_sites(net: nn.Module, x: Tensor, **options) -> list:
    """The results of the network in float32 and in float64."""
    return [
        rf.fit(copy.deepcopy(net).to(dtype), x.to(dtype), holdout=0.0).sample(factor=4, **options)[1].sites[0]
        for dtype in (torch.float32, torch.float64)
    ]


@pytest.mark.filterwarnings("ignore:site .* samples for")
@pytest.mark.parametrize("b", [1e3, 1e5])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dense", {"method": "calibrated"}),
        ("dense", {"method": "paper"}),
        ("dense", {"method": "paper", "offset": True, "scale": "optimal"}),
        ("dense", {"method": "calibrated", "law": "gaussian", "scale": "nuclear"}),
        ("normalised", {"method": "paper"}),
        ("normalised", {"method": "calibrated"}),
        ("maps", {"method": "calibrated"}),
        ("maps", {"method": "calibrated", "align_flattened": True, "sites": ["4"]}),
    ],
    ids=["calibrated", "paper", "offset", "nuclear", "bn", "bn-calibrated", "pooled", "flattened"],
)
def test_a_sampled_site_is_that_of_float64(kind: str, options: dict, b: float) -> None:
    """phi' itself is a float32 number of size b. It is rounded to b eps, and so is the output of the network."""
    single, double = first_sites(*shifted_net(kind, b), **options)
    rounding = b * torch.finfo(torch.float32).eps  # of a number, over the deviations
    within = 1e-4 + rounding  # 1e-4: float32 sums, 1e-6, times a condition number of M below 100
    assert single.scale == pytest.approx(double.scale, rel=within)
    assert single.similarity == pytest.approx(double.similarity, rel=within)
    assert single.error_centred == pytest.approx(double.error_centred, rel=1e-2, abs=20 * rounding**2)


@pytest.mark.parametrize("way", ["summed", "kernel", "products"])
@pytest.mark.parametrize("kind", ["dense", "normalised"])
def test_regressions_about_the_mean(way: str, kind: str) -> None:
    centred = {"center": True, "offset": True} if kind == "dense" else {}
    single, double = first_sites(*shifted_net(kind, 1e4), alignment=Regression(solver=way), **centred)
    # Almost linear, so that little more remains than the rounding of A phi' and phi, 1e4 eps of the deviations,
    # squared, over some terms.
    assert double.error_centred < 1e-6 and single.error_centred < 1e-5
    assert single.similarity == pytest.approx(double.similarity, rel=1e-4)  # as above, where b is 0


@pytest.mark.parametrize("way", ["summed", "kernel", "products"])
def test_an_uncentred_regression(way: str) -> None:
    single, double = first_sites(*shifted_net("dense", 1e3), alignment=Regression(1e-6, way))
    certain = 1e-2 if way == "products" else 0.0  # predictions to 1e-4 of themselves, which are 1e3 deviations
    assert single.error_centred == pytest.approx(double.error_centred, rel=1e-2, abs=certain)


def test_products_too_inexact_to_solve_with() -> None:
    net, x = shifted_net("dense", 1e6)
    with pytest.raises(ValueError, match="site '1': ridge: "):
        rf.fit(net, x, holdout=0.0).sample(factor=4, alignment=Regression(1e-8, "products"), center=True, offset=True)
