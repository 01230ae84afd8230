# SPDX-License-Identifier: BSD-3-Clause
"""Training with resampled neurons: the passes are the networks that `sample` makes, and gradients are exact."""

import copy
import math

import pytest
import torch
from here import draw
from torch import Tensor, nn

import rainbow_fast as rf

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
WIDTHS = (40, 13)


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        rf.nn.RainbowConv2d(3, 16, 3, 6, seed=0, padding=1, pool=nn.MaxPool2d(2)),
        rf.nn.RainbowConv2d(16, 24, 3, 8, seed=0, stream=1, padding=1, bias=True),
        nn.Flatten(),
        rf.nn.RainbowLinear(24 * 9, 20, 10, seed=0, stream=2, activation="tanh"),
        nn.Linear(20, 4),
    ).double()


X = draw(150, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_clean_pass_is_the_sample_with_the_same_key(width: int) -> None:
    net = cnn()
    resampled = rf.nn.resample(net, width, align="clean", seed=7, max_samples=10**6)
    for index in range(2):
        sampled, _ = rf.sample(net, X, width=width, seed=7, network_index=index, holdout=0.0)
        outputs = resampled(X)
        assert float((outputs - net(X)).detach().norm()) > 0.1 * float(outputs.detach().norm()), (
            "the neurons are other ones"
        )
        # float64, times the condition numbers of M, which are up to 1e6
        torch.testing.assert_close(outputs, sampled(X), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pool", [None, nn.MaxPool2d(2)], ids=["plain", "pooled"])
@pytest.mark.parametrize("align", ["local", "clean"])
def test_one_layer_by_its_formula(align: str, pool: nn.Module | None) -> None:
    layer, z = rf.nn.RandomFeatures(5, 12, seed=3, pool=pool), draw(40, 5, 4, 4, dtype=torch.float64)
    resampled = rf.nn.resample(layer, 30, align=align, seed=1)
    G = rf.gaussian(30, 5, seed=1, dtype=torch.float64)
    fresh = torch.einsum("nr,brhw->bnhw", G, z).relu() / math.sqrt(5)
    fresh = fresh if pool is None else pool(fresh)
    M = rf.cross_covariance(layer(z), fresh)
    wanted = math.sqrt(12 / 30) * torch.einsum(
        "dn,bnhw->bdhw",
        torch.linalg.svd(M, full_matrices=False)[0] @ torch.linalg.svd(M, full_matrices=False)[2],
        fresh,
    )
    torch.testing.assert_close(resampled(z), wanted, rtol=1e-9, atol=1e-9)  # float64, times the condition of M


def test_closed_form_is_the_limit_of_many_gaussian_samples() -> None:
    layer = rf.nn.RandomFeatures(4, 6, seed=3, activation="gelu")
    z = draw(200_000, 4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    closed, local = (rf.nn.resample(layer, 9, align=a, max_samples=10**6) for a in ("closed_form", "local"))
    # M has the relative error N^(-1/2) = 2e-3, and its smallest singular value is 1/20 of the largest
    torch.testing.assert_close(closed(z), local(z), rtol=0, atol=0.1 * float(layer(z).std()))


@pytest.mark.parametrize("align", ["local", "clean", "closed_form"])
def test_every_pass_has_fresh_neurons_and_eval_has_none(align: str) -> None:
    net = cnn()
    own = net(X)
    resampled = rf.nn.resample(net, 30, align=align)
    first, second = resampled(X), resampled(X)
    assert not torch.equal(first, second)
    assert torch.equal(rf.nn.resample(net, 30, align=align)(X), first), "the same seed has the same neurons"
    assert torch.equal(resampled.eval()(X), own) and torch.equal(net(X), own)


def test_as_a_context() -> None:
    net = cnn()
    first = rf.nn.resample(net, 30)(X)
    with rf.nn.resample(net, 30) as resampled:
        assert torch.equal(net(X), first)
        with pytest.raises(RuntimeError, match="network: its neurons are resampled already"):
            resampled(X)
        with pytest.raises(RuntimeError, match="network: its neurons are resampled already"):
            rf.nn.resample(net, 30)(X)
    assert not torch.equal(net(X), first)
    with pytest.raises(ZeroDivisionError), rf.nn.resample(net, 30):
        _ = 1 / 0
    assert torch.equal(rf.nn.resample(net, 30)(X), first), "an error leaves the network as it was"


@pytest.mark.parametrize("gradient", [False, True], ids=["A is constant", "through A"])
def test_gradients(gradient: bool) -> None:
    layer, z = rf.nn.RandomFeatures(4, 5, seed=0, activation="tanh"), draw(30, 4, dtype=torch.float64)
    resampled = rf.nn.resample(layer, 8, gradient=gradient)
    start = resampled.key

    def outputs(z: Tensor) -> Tensor:
        resampled.key = start
        return resampled(z)

    def with_constant_A(z: Tensor) -> Tensor:
        return rf.random_features(z / 2, 8, seed=0, activation="tanh") @ A.T

    z.requires_grad_()
    if gradient:
        assert torch.autograd.gradcheck(outputs, z, atol=1e-6)
        return
    fresh = rf.random_features(z / 2, 8, seed=0, activation="tanh")
    A = math.sqrt(5 / 8) * rf.polar(layer(z).T @ fresh).A.detach()
    (got,), (wanted,) = (torch.autograd.grad(f(z).square().sum(), z) for f in (outputs, with_constant_A))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)  # float64, times the condition of M


def test_the_clean_pass_leaves_no_trace() -> None:
    """Running statistics and the random state are those of one pass, and both passes have the same masks."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), rf.nn.RandomFeatures(4, 9, seed=0))
    x, local = draw(50, 6), copy.deepcopy(net)
    torch.manual_seed(1)
    rf.nn.resample(net, align="clean")(x)
    after = torch.rand(3)
    torch.manual_seed(1)
    outputs = rf.nn.resample(local, align="local")(x)
    assert torch.equal(torch.rand(3), after)
    for one, other in zip(net.buffers(), local.buffers(), strict=True):
        assert torch.equal(one, other)
    torch.manual_seed(1)
    with_same_masks = rf.nn.resample(net, align="clean")(x)  # one layer of neurons: clean and local are the same
    torch.testing.assert_close(with_same_masks, outputs, rtol=1e-4, atol=1e-5)  # float32, times the condition of M


def test_training_goes_on_with_other_neurons() -> None:
    net = cnn()
    resampled = rf.nn.resample(net, 30)
    resampled(X)
    state = resampled.state_dict()
    assert "key" in state and state["key"].tolist() == [0, 1 << 12, 0, 0]
    other = rf.nn.resample(cnn(), 30)
    other.load_state_dict(copy.deepcopy(state))
    assert torch.equal(other(X), resampled(X))
    last = rf.nn.resample(net, 30, seed=5)
    last.key = rf.key(5, (2**20 - 1) << 12)
    last(X)
    assert last.key.tolist() == [6, 0, 0, 0], "after 2^20 passes, the next seed"


def test_half_precision_and_autocast() -> None:
    net, x = cnn().float(), X.float()
    wanted = rf.nn.resample(net, 30)(x)
    size = float(wanted.detach().abs().max())
    with torch.autocast("cpu", torch.bfloat16):
        got = rf.nn.resample(net, 30)(x)
    # three layers, whose results are rounded to 2^-9, a few times each
    assert float((got.float() - wanted).detach().abs().max()) < 2**-5 * size
    got = rf.nn.resample(copy.deepcopy(net).bfloat16(), 30)(x.bfloat16())
    assert got.dtype == torch.bfloat16 and float((got.float() - wanted).detach().abs().max()) < 2**-5 * size


def test_rows_with_channels_last() -> None:
    layer, z = rf.nn.RandomFeatures(4, 6, seed=0, axis=-1), draw(5, 7, 4, dtype=torch.float64)
    for align in ("local", "clean", "closed_form"):
        rows = rf.nn.resample(layer, 9, align=align)(z.flatten(0, 1))
        assert torch.equal(rf.nn.resample(layer, 9, align=align)(z), rows.view(5, 7, 6))


def test_errors() -> None:
    net = cnn()
    with pytest.raises(TypeError, match="network: wanted an nn.Module, got list"):
        rf.nn.resample([net])
    with pytest.raises(ValueError, match="network: no rainbow layer, wanted at least one rainbow_fast.nn.RandomFeat"):
        rf.nn.resample(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="align='other': wanted one of local, clean, closed_form"):
        rf.nn.resample(net, align="other")
    with pytest.raises(ValueError, match="width=0: wanted width >= 1"):
        rf.nn.resample(net, 0)
    with pytest.raises(ValueError, match="width: '4' is no rainbow layer: wanted some of 0.features, 1.features, 3.fe"):
        rf.nn.resample(net, {"4": 5})
    with pytest.raises(ValueError, match="width of '0.features'=0: wanted"):
        rf.nn.resample(net, {"0.features": 0})
    with pytest.raises(TypeError, match="gradient=1: wanted True or False"):
        rf.nn.resample(net, gradient=1)
    with pytest.raises(ValueError, match="max_samples=0: wanted max_samples >= 1"):
        rf.nn.resample(net, max_samples=0)
    with pytest.raises(ValueError, match="seed=-1: wanted"):
        rf.nn.resample(net, seed=-1)


def test_layers_with_the_same_neurons() -> None:
    net = nn.Sequential(rf.nn.RainbowLinear(4, 8, 2, seed=0), rf.nn.RainbowLinear(8, 8, 2, seed=0))
    with pytest.warns(UserWarning, match="the same neurons: '0.features', '1.features'; wanted another stream") as seen:
        rf.nn.resample(net)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("align", ["local", "clean", "closed_form"])
def test_features_that_are_not_finite_name_their_layer(align: str) -> None:
    """A training that diverges. Afterwards the network has its own neurons again."""
    net = nn.Sequential(rf.nn.RainbowLinear(5, 8, 3, seed=0), rf.nn.RainbowLinear(8, 6, 2, seed=0, stream=1))
    x = draw(20, 5)
    with torch.no_grad():
        net[1].projection.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"'1\.features': its features are not finite, or all zero; the learn"):
        rf.nn.resample(net, 10, align=align)(x)
    with torch.no_grad():
        net[1].projection.weight.zero_()
    with pytest.raises(FloatingPointError, match=r"'1\.features': its features are not finite, or all zero; the learn"):
        rf.nn.resample(net, 10, align=align)(x)
    assert torch.equal(net(x), torch.zeros(20, 6))
