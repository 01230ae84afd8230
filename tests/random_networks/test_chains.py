# SPDX-License-Identifier: BSD-3-Clause
"""Chains with explicit weights: the layer as a formula, laws of weights, and the same law as chains without weights."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torch.nn import functional as F

from rainbow_fast import random_networks as rn
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.random_networks import RandomLayer, gram_chain, weight_chain

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # identities of float64, up to rounding
ORDERS = ("linear-norm-activation", "activation-linear-norm", "linear-activation-norm")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(n: int) -> Tensor:
    return torch.linalg.qr(random(n, n, seed=n))[0]


def weights(d: int, units: int, *, layer: int, run: int = 0, seed: int = 0) -> Tensor:
    """The weights of a chain, by the op alone."""
    place = {"seed": seed, "stream": run << 20 | layer, "row_offset": d << 32}
    return gaussian(d, units, dtype=torch.float64, **place) / math.sqrt(units)


def norm(name: str, H: Tensor) -> Tensor:
    """The normalisers, in plain PyTorch."""
    if name == "batch_standard":
        return F.batch_norm(H, None, None, training=True)
    if name == "layer":
        return F.layer_norm(H, H.shape[1:])
    if name == "batch_centred":
        H = H - H.mean(0)
    return H if name == "none" else H / H.norm(dim=0)


def test_every_normaliser_and_order():
    """A chain of two layers, written out, for two runs and two widths."""
    H = random(5, 7)
    cases = [(name, "linear-norm-activation") for name in ("none", "batch", "batch_centred", "batch_standard", "layer")]
    cases += [("batch", order) for order in ORDERS[1:]] + [("layer", "linear-activation-norm")]
    for name, order in cases:
        layer = RandomLayer("tanh", name, order, gain=1.5)
        result = weight_chain(H, 2, width=[6, 9], runs=2, seed=3, layer=layer)
        for k, d in enumerate((6, 9)):
            for run in range(2):
                x = H
                for number in range(2):
                    W = 1.5 * weights(d, x.shape[1], layer=number, run=run, seed=3)
                    steps: dict[str, Callable[[Tensor], Tensor]] = {
                        "linear": lambda x, W=W: x @ W.T,
                        "norm": lambda x, name=name: norm(name, x),
                        "activation": torch.tanh,
                    }
                    for step in order.split("-"):
                        x = steps[step](x)
                    torch.testing.assert_close(result.grams[k, run, number + 1], rn.gram(x), **EXACT)


def test_skips():
    H, W = random(4, 6), weights(6, 6, layer=0)
    for skip, expected in (
        ("linear", torch.relu(norm("batch", H + 0.3 * H @ W.T))),
        ("block", H + 0.3 * torch.relu(norm("batch", H @ W.T))),
    ):
        layer = RandomLayer("relu", skip=skip, branch=0.3)
        torch.testing.assert_close(weight_chain(H, 1, width=6, layer=layer).grams[0, 1], rn.gram(expected), **EXACT)


def test_batches_share_weights():
    """Each batch has the measures that it has alone; without the axis of batches there is none in the results."""
    H = random(3, 4, 8)
    layer = RandomLayer("relu", "batch_standard", "activation-linear-norm")
    together = weight_chain(H, 4, width=10, runs=2, layer=layer, every=2)
    assert together.factors.shape == (2, 3, 3, 4, 4) and together.orthogonality_gap.shape == (2, 3, 3)
    for k, batch in enumerate(H):
        alone = weight_chain(batch, 4, width=10, runs=2, layer=layer, every=2)
        torch.testing.assert_close(together.grams[:, k], alone.grams, **EXACT)
    starts = weight_chain(torch.stack([H, -2 * H + 1]), 1, width=10, runs=2, layer=layer)
    torch.testing.assert_close(starts.grams[0], weight_chain(H, 1, width=10, layer=layer).grams[0], **EXACT)
    assert starts.theory == {}
    assert weight_chain(H, 4, width=[10, 12]).theory["mean_field_gap"].shape == (2, 3, 5)


def test_measures_are_those_of_the_batch():
    """Factors (n, n) stand for batches (n, d); numbers are float64 for chains of float32."""
    H, seen = random(4, 50).float(), []
    layer = RandomLayer(lambda x: seen.append(x) or x)
    result = weight_chain(H, 1, width=30, layer=layer)
    [[[last]]] = seen
    close = {"rtol": 1e-5, "atol": 1e-6}  # rounding of float32 in the chain
    for name in ("orthogonality_gap", "effective_rank", "isometry_gap", "gaussian_distance", "mean_cosine"):
        values = getattr(result, name)
        assert values.shape == (1, 2) and values.dtype == torch.float64
        torch.testing.assert_close(values[0, 0], getattr(rn, name)(H), **close)
        torch.testing.assert_close(values[0, 1], getattr(rn, name)(last), **close)
    values = torch.linalg.eigvalsh(rn.gram(last))
    torch.testing.assert_close(result.smallest_eigenvalue[0, 1], values[0], **close)
    torch.testing.assert_close(result.largest_eigenvalue[0, 1], values[-1], **close)


def test_invariances():
    """The scale of W does not matter; rotated samples stay rotated, with the same weights."""
    H, Q = random(4, 9), orthogonal(4)
    C = weight_chain(H, 3, width=12).grams
    torch.testing.assert_close(weight_chain(H, 3, width=12, layer=RandomLayer(gain=50)).grams, C, **EXACT)
    torch.testing.assert_close(weight_chain(Q @ H, 3, width=12).grams, Q @ C @ Q.T, **EXACT)
    runs = weight_chain(H, 5, width=12, runs=3)
    torch.testing.assert_close(runs.grams[:1, :4], C, **EXACT)


def test_deep_chains_keep_their_scale():
    """Without a norm, relu halves |H|^2 in every layer: 2^-2000 is no float64. Measures do not see the scale."""
    layer = RandomLayer("relu", "none")
    deep = weight_chain(random(2, 100), 2000, width=100, layer=layer, every=1000)
    assert bool((deep.mean_cosine[0, 1:] > 0.99).all())
    assert gram_chain(random(2, 100), 3000, width=100, layer=RandomLayer(normaliser="none", gain=1e-3), every=3000)


@pytest.mark.parametrize(
    "layer",
    [
        RandomLayer(),
        RandomLayer("relu", "batch", "activation-linear-norm"),
        RandomLayer("tanh", "batch_centred", "linear-activation-norm", skip="block", branch=0.5),
        RandomLayer(skip="linear", branch=0.5),
    ],
    ids=lambda layer: f"{layer.activation} {layer.skip}",
)
def test_same_law_as_without_weights(layer):
    """Two-sample Kolmogorov-Smirnov tests of V after 1 and 10 layers, 2000 runs: p > 1e-3 in each."""
    H = torch.eye(3, 12, dtype=torch.float64) + 0.3
    ways = [
        chain(H, 10, width=12, runs=2000, layer=layer, seed=seed).orthogonality_gap
        for seed, chain in enumerate((weight_chain, gram_chain))
    ]
    for after in (1, 10):
        assert ks_2samp(ways[0][:, after], ways[1][:, after]).pvalue > 1e-3


def test_same_law_for_several_batches():
    """The gaps of two batches through the same weights, one of which has twice the samples of the width in all."""
    H = torch.stack([torch.eye(5, 6), torch.ones(5, 6) + torch.eye(5, 6)]).double()
    layer = RandomLayer("relu", "batch_standard", "activation-linear-norm")
    for width in (6, 24):  # fewer and more units than samples
        ways = [
            chain(H, 3, width=width, runs=1000, layer=layer, seed=seed, every=3).orthogonality_gap[..., 1]
            for seed, chain in enumerate((weight_chain, gram_chain))
        ]
        for of in (lambda V: V[:, 0], lambda V: V[:, 0] - V[:, 1], lambda V: V[:, 0] * V[:, 1]):
            assert ks_2samp(of(ways[0]), of(ways[1])).pvalue > 1e-3


def test_haar_chain():
    """phi falls by the mean of log|(W x)_j|^2, exactly; slowly at last, by d / (d + 2) in a layer."""
    d, drawn = 20, []

    def haar(layer: int, d_out: int, d_in: int) -> Tensor:
        W = orthogonal_from(random(d_out, d_in, seed=100 * len(drawn)))
        drawn.append(W)
        return W

    start = orthogonal(d) + 0.05 * random(d, d, seed=3)
    H = start / start.norm(dim=0)
    result = weight_chain(H, 6, width=d, weights=haar)
    phi = [float(rn.isometry_gap(H))]
    for W in drawn:
        WH = H @ W.T
        phi.append(phi[-1] + float(WH.square().sum(0).log().mean()))
        H = WH / WH.norm(dim=0)
    assert result.weights == "function" and result.theory == {}
    assert result.isometry_gap[0, 1:].tolist() == pytest.approx(phi[1:], rel=1e-10, abs=1e-12)

    result = weight_chain(start, 60, width=d, weights="haar", runs=10)
    phi = result.isometry_gap[:, 1:]
    assert bool((phi.diff(dim=1) <= 1e-14).all()), "it falls in every layer, up to rounding"
    rate = ((phi[:, -1] / phi[:, 19]).log() / 40).mean()
    assert float(rate) == pytest.approx(math.log(d / (d + 2)), rel=0.05)
    assert float(result.theory["isometry_factor"][0]) == d / (d + 2)
    loss = -(phi.neg().exp().mean(0)).log().diff()
    bound = rn.chain_theory.haar_isometry_bound(result.orthogonality_gap[:, 1:-1], d).mean(0)
    assert bool((-loss > bound).all()), "the theorem, for the mean over runs"


def orthogonal_from(G: Tensor) -> Tensor:
    """The orthogonal factor of a Gaussian matrix with the signs that make it uniform."""
    Q, R = torch.linalg.qr(G)
    return Q * R.diagonal().sign()


def test_haar_weights_are_uniform():
    """W is orthogonal, and its entries have the moments of those of uniform unit vectors."""
    d, seen = 5, []
    layer = RandomLayer(lambda x: seen.append(x[:, 0]) or x, normaliser="none", gain=2)
    weight_chain(torch.eye(d).double(), 1, width=d, weights="haar", layer=layer, runs=800)
    [W] = seen
    eye = 4 * torch.eye(d).double().expand(800, d, d)
    torch.testing.assert_close(W.mT @ W, eye, rtol=0, atol=1e-12)
    for moment, expected in ((1, 0.0), (3, 0.0), (4, 16 * 3 / (d * (d + 2)))):
        each = W.pow(moment)
        assert bool(((each.mean(0) - expected).abs() < 4.5 * each.std(0) / math.sqrt(800)).all())  # 25 z-scores


def test_uniform_weights():
    """They are those of `uniform_weights`, and a batch norm makes the chain that of Gaussian weights, to 4 sd."""
    d, seen = 6, []
    layer = RandomLayer(lambda x: seen.append(x[:, 0]) or x, normaliser="none", gain=2)
    weight_chain(torch.eye(d).double(), 1, width=d, weights="uniform", layer=layer, runs=3, seed=5)
    [W] = seen  # (runs, d, d): the batch is the identity, so these are the weights, transposed
    assert float(W.abs().max()) < 2 * math.sqrt(3 / d) and len(W.unique()) == W.numel()
    assert torch.equal(
        W[0].T, 2 / math.sqrt(d) * rn.uniform_weights(d, d, seed=5, row_offset=d << 32, dtype=torch.float64)
    )
    chains = [weight_chain(torch.eye(4), 40, width=100, weights=law, runs=200) for law in ("gaussian", "uniform")]
    means = [chain.orthogonality_gap[:, -1].mean() for chain in chains]
    deviation = math.hypot(*(float(chain.orthogonality_gap[:, -1].std()) / math.sqrt(200) for chain in chains))
    assert abs(float(means[0] - means[1])) < 4 * deviation


@pytest.mark.slow
@pytest.mark.parametrize("law", ["haar", "uniform"])
def test_the_largest_width(law):
    """2048: Haar weights are orthogonal; uniform weights are those of `uniform_weights`, with their variance."""
    d, seen = 2048, []
    layer = RandomLayer(lambda x: seen.append(x[0, 0]) or x, normaliser="none")
    weight_chain(torch.eye(d).double(), 1, width=d, weights=law, layer=layer, seed=4)
    [W] = seen  # transposed, as the batch is the identity
    if law == "haar":
        # every entry is a sum of 2048 products of 1/2048: roundings of 1e-16, some hundred times in the iteration
        torch.testing.assert_close(W @ W.mT, torch.eye(d).double(), rtol=0, atol=1e-12)
        return
    wanted = 1 / math.sqrt(d) * rn.uniform_weights(d, d, seed=4, row_offset=d << 32, dtype=torch.float64).T
    assert torch.equal(W, wanted)
    # w^2 d has mean 1 and variance 4/5
    assert abs(float(W.square().mean()) * d - 1) < 4 * math.sqrt(0.8) / d


def test_wide_layers_store_no_weights():
    """A layer of width 20 000 would need 1.6 GB of weights; V after it has its deviation of 1 / sqrt d."""
    result = weight_chain(torch.eye(4), 1, width=20_000)
    assert float(result.orthogonality_gap[0, 1]) < 4 * math.sqrt(0.75 / 20_000)


H4 = torch.eye(4, 6)


@pytest.mark.parametrize("chain", [weight_chain, gram_chain], ids=lambda chain: chain.__name__)
def test_progress(chain):
    """Of all widths together, layer by layer, whatever is recorded."""
    calls: list[tuple] = []
    chain(H4, 2, width=[5, 8], every=2, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4, "width 5"), (2, 4, "width 5"), (3, 4, "width 8"), (4, 4, "width 8")]


@pytest.mark.parametrize("chain", [weight_chain, gram_chain], ids=lambda chain: chain.__name__)
@pytest.mark.parametrize(
    "H, options, error, message",
    [
        (H4, {"depth": 0}, ValueError, "^depth=0: wanted 1 <= depth < 2\\^20"),
        (H4, {"depth": 2.0}, TypeError, "^depth=2.0: wanted an integer"),
        (H4, {"width": 0}, ValueError, "^width=0: wanted 1 <= width < 2\\^24"),
        (H4, {"width": []}, ValueError, "^width is an empty list: wanted at least one width"),
        (H4, {"width": [8, "9"]}, TypeError, "^width='9': wanted an integer"),
        (H4, {"runs": 0}, ValueError, "^runs=0: wanted (runs >= 1|1 <= runs <= 4096)"),
        (H4, {"seed": -1}, ValueError, "^seed=-1: wanted 0 <= seed < 2\\^63"),
        (H4, {"every": 0}, ValueError, "^every=0: wanted every >= 1"),
        (H4, {"progress": 3}, TypeError, "^progress: wanted a function, True or None, got int"),
        (H4, {"layer": "batch"}, TypeError, "^layer='batch': wanted a RandomLayer"),
        (0 * H4, {}, ValueError, "^H is zero: wanted a batch with a direction"),
        (H4 / 0, {}, ValueError, "^H is not finite"),
        (H4.bfloat16(), {}, TypeError, "^H is torch.bfloat16: wanted float32 or float64"),
        (H4.long(), {}, TypeError, "^H is torch.int64: wanted real numbers"),
        (H4[0], {}, ValueError, r"^H has shape \(6,\): wanted \(\*batch, n, d\)"),
        ([[1.0]], {}, TypeError, "^H is a list: wanted a torch.Tensor"),
        (H4[None, None, None], {}, ValueError, r"^H has shape \(1, 1, 1, 4, 6\): wanted \(n, d\), \(B, n, d\) or"),
        (H4[None, None], {"runs": 2}, ValueError, r"^H has shape \(1, 1, 4, 6\), starts of 1 runs: wanted runs=2"),
        (
            *(H4[:1], {"layer": RandomLayer(normaliser="batch_centred")}, ValueError),
            r"^H has shape \(1, 6\): wanted two samples for normaliser='batch_centred'",
        ),
        (
            H4,
            {"layer": RandomLayer(skip="block")},
            ValueError,
            "^H has 6 units: wanted width=8, because of skip='block'",
        ),
        (
            *(H4, {"layer": RandomLayer(lambda x: x[0])}, ValueError),
            r"^activation returned a tensor of shape \(1, 4, 8\): wanted a tensor of the shape it takes, \(1, 1, 4",
        ),
        (
            *(H4, {"layer": RandomLayer(lambda x: 0 * x)}, RuntimeError),
            "^the batch of run 0 at width 8 is zero after 1 layers: wanted one with a direction",
        ),
        (
            *(H4, {"layer": RandomLayer(lambda x: x / 0)}, RuntimeError),
            "^the batch of run 0 at width 8 is not finite after 1 layers",
        ),
    ],
)
def test_refused(chain, H, options, error, message):
    with pytest.raises(error, match=message):
        chain(H, **{"depth": 2, "width": 8, **options})


def test_refused_runs():
    with pytest.raises(ValueError, match=r"^runs=1073741824 at width=10: wanted runs \* width < 2\^32"):
        gram_chain(H4, 2, width=10, runs=2**30)
    with pytest.raises(ValueError, match="^runs=4097: wanted 1 <= runs <= 4096"):
        weight_chain(H4, 2, width=10, runs=4097)


def test_refused_weights():
    for law, error, message in (
        (
            "normal",
            ValueError,
            r"^weights='normal': wanted gaussian, haar, uniform, or a function of \(layer, d_out, d_in\)",
        ),
        (None, ValueError, "^weights=None: wanted gaussian, haar, uniform, or a function"),
        (
            *(lambda layer, d_out, d_in: torch.ones(d_in, d_out), ValueError),
            r"^weights returned a tensor of shape \(6, 8\) for layer 0: wanted a tensor of shape \(8, 6\)",
        ),
        (lambda *_: None, ValueError, r"^weights returned None for layer 0: wanted a tensor of shape \(8, 6\)"),
    ):
        with pytest.raises(error, match=message):
            weight_chain(H4, 2, width=8, weights=law)
    for law in ("haar", "uniform"):
        with pytest.raises(ValueError, match="^width=2049: wanted 1 <= width <= 2048"):
            weight_chain(H4, 2, width=2049, weights=law)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"activation": "sine"}, ValueError, "^activation='sine': wanted one of identity, relu"),
        ({"activation": 3}, TypeError, "^activation=3: wanted a name or a function of a tensor"),
        ({"normaliser": "group"}, ValueError, "^normaliser='group': wanted one of none, batch, batch_centred"),
        ({"order": "norm"}, ValueError, "^order='norm': wanted one of linear-norm-activation, activation-linear-norm"),
        ({"skip": "all"}, ValueError, "^skip='all': wanted None, linear or block"),
        ({"gain": 0}, ValueError, "^gain=0: wanted a positive number"),
        ({"eps": math.inf}, ValueError, "^eps=inf: wanted a positive number"),
        ({"branch": math.nan}, ValueError, "^branch=nan: wanted a finite number"),
        ({"negative_slope": "0"}, TypeError, "^negative_slope is a str: wanted a number"),
    ],
)
def test_refused_layers(options, error, message):
    with pytest.raises(error, match=message):
        RandomLayer(**options)
