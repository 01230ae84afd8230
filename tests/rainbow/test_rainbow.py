# SPDX-License-Identifier: BSD-3-Clause
"""Sampling agrees with the design: identity, the wide networks of the paper, the written-out network, invariance."""

import pytest
import torch
from architectures import settle
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
F64 = torch.float64


def images(*shape: int, N: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tokens() -> nn.Sequential:
    """Linear layers on (N, tokens, channels), and a dead neuron: M is rank-deficient."""
    net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad():
        net[2].weight[1] = 0
        net[2].bias[1] = -1
    return net.double()


def pooled() -> nn.Sequential:
    """Max-pooling before and after, padding, average pooling, affine batch norms before and after, groups."""
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.MaxPool2d(2), nn.LeakyReLU(0.1), nn.BatchNorm2d(5)),
        nn.AvgPool2d(3, stride=1, padding=1),
        nn.Conv2d(5, 6, 3, padding=1, bias=False, groups=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, padding=1),
        nn.Dropout2d(),
        nn.Conv2d(6, 4, 1, groups=2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1)
            nn.init.normal_(module.bias)
    return net


NETS = {
    "mlp": (lambda: mlp((12, 9, 7, 3), bias=True, activation=nn.Tanh, seed=0).double(), (12,)),
    "mlp batch norm": (lambda: mlp((12, 9, 7, 3), batch_norm="after", seed=0).double(), (12,)),
    "cnn": (lambda: cnn((2, 5, 6), kernel_size=3, image_size=9, seed=0).double(), (2, 9, 9)),
    "cnn batch norm": (
        lambda: cnn((2, 5, 6), kernel_size=3, image_size=9, batch_norm="after", seed=0).double(),
        (2, 9, 9),
    ),
    "pooled": (pooled, (2, 8, 8)),
    "tokens": (tokens, (4, 5)),
}


@pytest.fixture(params=NETS)
def reference(request) -> tuple[nn.Module, Tensor]:
    build, shape = NETS[request.param]
    torch.manual_seed(0)
    x = images(*shape)
    return settle(build(), x).eval(), x


@pytest.mark.parametrize(
    "options", [{"method": "paper"}, {"method": "calibrated"}, {"method": "regression", "ridge": 0.0}], ids=str
)
def test_identity(reference, options):
    """With z' = zh the sampled network is the reference, on inputs in the range of M."""
    net, x = reference
    network, report = rf.sample(net, x, holdout=0, law="identity", **options)
    assert (network(x) - net(x)).norm() <= 1e-8 * net(x).norm()  # rounding times the condition number of M
    assert all(site.error <= 1e-16 for site in report.sites)  # its square


def test_identity_of_the_flattened_alignment():
    build, shape = NETS["cnn"]
    x = images(*shape)
    network, _ = rf.sample(build(), x, holdout=0, law="identity", align_flattened=True)
    assert (network(x) - build()(x)).norm() <= 1e-8 * build()(x).norm()  # as above


def test_a_short_alignment_set_gives_another_network(reference):
    """The identity above does not hold by construction."""
    net, x = reference
    network, report = rf.sample(net, x, holdout=0)
    assert (network(x) - net(x)).norm() > 1e-2 * net(x).norm()
    assert all(site.error > 1e-3 for site in report.sites)


@torch.no_grad()
def wide_network(reference: nn.Sequential, x: Tensor, widths: list[int], seed: int) -> Tensor:
    """Logits of one sample of rainbow.md A.7 in plain torch, by wide weights W' = G W A sqrt(d/n) / sqrt(d)."""
    ref, new, A, site = x, x, None, 0
    layers = list(reference)
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            ref, W = layer(ref), layer.weight
            if A is not None:
                split = W.view(len(W), len(A), -1)
                W = torch.einsum("odp,dn->onp", split, A).reshape(len(W), -1, *W.shape[2:])
            if i != last:
                d, n = len(W), widths[site]
                G = rf.gaussian(n, d, seed=seed, stream=site, dtype=W.dtype)
                W = torch.einsum("nd,d...->n...", G, W) / d**0.5
            new = new @ W.T if W.dim() == 2 else nn.functional.conv2d(new, W, stride=layer.stride)
        elif isinstance(layer, nn.BatchNorm2d):
            ref = layer(ref)
            new = (new - new.mean((0, 2, 3), keepdim=True)) / (
                new.var((0, 2, 3), unbiased=False, keepdim=True) + layer.eps
            ).sqrt()
        else:
            ref, new = layer(ref), layer(new)
        ends = isinstance(layer, nn.ReLU) and not isinstance(layers[i + 1], nn.BatchNorm2d)
        if ends or isinstance(layer, nn.BatchNorm2d):
            a, b = (t.movedim(1, -1).reshape(-1, t.shape[1]) for t in (ref, new))
            U, _, Vh = torch.linalg.svd(a.T @ b, full_matrices=False)
            A, site = U @ Vh * (a.shape[1] / b.shape[1]) ** 0.5, site + 1
    return new


@pytest.mark.parametrize("kind", ["mlp", "cnn", "cnn batch norm"])
def test_equals_the_wide_network_of_the_paper(kind):
    if kind == "mlp":
        net, x = mlp((12, 9, 7, 3), seed=0).double(), images(12)
    else:
        build, shape = NETS[kind]
        net, x = build(), images(*shape)
    settle(net, x).eval()
    names = [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]
    network, _ = rf.sample(net, x, holdout=0, width=dict(zip(names, (30, 4), strict=True)), seed=5)
    wanted = wide_network(net, x, [30, 4], seed=5)
    assert (network(x) - wanted).norm() <= 1e-9 * wanted.norm()  # float64 times the condition of M


@torch.no_grad()
def step_by_step(reference: nn.Sequential, x: Tensor, n: int, method: str) -> Tensor:
    """The logits of the calibrated method (its steps a to g) or of the regression, for a perceptron, in plain torch."""
    ref, new, site = x, x, 0
    for layer in reference:
        z, zh = layer(ref), layer(new)
        if isinstance(layer, nn.ReLU):
            d, one = ref.shape[1], torch.eye(ref.shape[1], dtype=F64)
            G = rf.gaussian(n, d, seed=0, stream=site, dtype=F64)
            if method == "calibrated":
                if site:
                    gain = (ref.var(0) / new.var(0)).sqrt()
                    new = ref.mean(0) + gain * (new - new.mean(0))
                values, vectors = torch.linalg.eigh(G.T @ G / n)
                G = G @ (vectors / values.sqrt()) @ vectors.T @ (one - 1 / d)
            wide = (new @ (G.T / d**0.5 + (1 / d if method == "calibrated" else 0))).relu()
            M, S = z.T @ wide / len(x), wide.T @ wide / len(x)
            if method == "calibrated":
                mu, mean = z.mean(0), wide.mean(0)
                U, sigma, Vh = torch.linalg.svd(M - torch.outer(mu, mean), full_matrices=False)
                A = U @ Vh * (sigma.sum() / (U @ Vh @ (S - torch.outer(mean, mean)) @ Vh.T @ U.T).trace())
                zh = wide @ A.T + mu - A @ mean
            else:
                zh = wide @ torch.linalg.solve(S + 1e-3 * S.diagonal().mean() * torch.eye(n), M.T)
            site += 1
        ref, new = z, zh
    return new


@pytest.mark.parametrize("method", ["calibrated", "regression"])
def test_methods_step_by_step(method):
    net, x = mlp((12, 9, 7, 3), bias=True, seed=0).double(), images(12)
    network, _ = rf.sample(net, x, holdout=0, width=40, method=method)
    wanted = step_by_step(net, x, 40, method)
    assert (network(x) - wanted).norm() <= 1e-9 * wanted.norm()  # float64 times the condition of M


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 3},
        {"factor": 3, "method": "calibrated"},
        {"factor": 0.5, "method": "calibrated", "rank": 4},
        {"factor": 3, "law": "bootstrap", "smoothing": 0.5, "offset": True},
        {"factor": 2, "method": "regression", "sites": "last"},
    ],
    ids=str,
)
def test_materialized_network_is_equal_and_plain(reference, options):
    net, x = reference
    model = rf.fit(net, x)
    if options.get("sites") == "last":
        options = options | {"sites": [model.sites[-1].site.name]}
    network, _ = model.sample(**options)
    plain = network.materialize()
    assert type(plain) is nn.Sequential and all(type(m).__module__.startswith("torch.nn") for m in plain.modules())
    new = images(*x.shape[1:], N=20, seed=1)
    assert (plain(new) - network(new)).norm() <= 1e-12 * network(new).norm()  # float64, another order


@pytest.mark.parametrize(
    "options",
    [
        {"width": 300},
        {"width": 5000, "law": "bootstrap", "smoothing": 0.5},
        {"width": 300, "law": "bootstrap", "smoothing": 0.5},
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_blocks_of_neurons_do_not_show(options, before):
    """A site with pooling works in blocks of 128 neurons; explicit rows come 4,096 at a time."""
    pool = nn.MaxPool2d(2) if options["width"] == 300 else nn.Identity()
    torch.manual_seed(0)
    middle = [pool, nn.Tanh()] if before else [nn.Tanh(), pool]
    net = nn.Sequential(nn.Conv2d(1, 4, 3), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double()
    x = images(1, 6, 6, N=30)
    network, report = rf.sample(net, x, holdout=0, scale="one", **options)
    site, z = network.site(network.sampled[0]), net[0](x)
    wide = torch.einsum("nd,bdhw->bnhw", site.effective_rows(), z)
    wide = pool(wide).tanh() if before else pool(wide.tanh())
    torch.testing.assert_close(site.features(z), wide)
    torch.testing.assert_close(site(z), torch.einsum("bnhw,dn->bdhw", wide, site.A))
    assert report.sites[0].sampled_activity == pytest.approx(0.5, abs=0.1)  # sampling: few neurons


def test_features_nest():
    """G nests in width, bit for bit, and in rank, if U is cut."""
    net, x = mlp((12, 9, 3), seed=0).double(), images(12)
    model = rf.fit(net, x)
    z = net[:2](x[:20])
    features = [model.sample(width=n)[0].site("2").features(z) for n in (200, 70)]
    assert torch.equal(features[0][:, :70], features[1])
    short, long = (model.sample(width=20, rank=r)[0].site("2") for r in (3, 5))
    assert torch.equal(long.U[:, :3], short.U) and torch.equal(long.key, short.key)
    rows = [rf.gaussian(20, r, seed=site.key) for r, site in ((3, short), (5, long))]
    assert torch.equal(rows[1][:, :3], rows[0])


def _signs_kept(U: Tensor, Q: Tensor) -> Tensor:
    """Q, changed so that it keeps the sign convention of U: the largest entry of each column of Q U is positive."""
    moved = Q @ U
    signs = moved.gather(0, moved.abs().argmax(0, keepdim=True)).sign()
    return Q @ (U * signs) @ U.T


@pytest.mark.parametrize("method", ["paper", "calibrated"])
def test_rotating_a_linear_site_changes_nothing(method):
    """phi -> Q phi and next W -> W Q^T, with the identity as activation."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 6, bias=False), nn.LeakyReLU(1.0), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)
    ).double()
    x = images(8)
    options = {"rank": 6, "width": 20, "method": method, "keep_mean": False}  # the mean over channels is not rotated
    first, _ = rf.sample(net, x, **options)
    U = rf.fit(net, x).sites[0].directions(centred=False)[1]
    Q = _signs_kept(U, torch.linalg.qr(torch.randn(6, 6, dtype=F64))[0])
    with torch.no_grad():
        net[0].weight.copy_(Q @ net[0].weight)
        net[2].weight.copy_(net[2].weight @ Q.T)
    second, _ = rf.sample(net, x, **options)
    assert (first(x) - second(x)).norm() <= 1e-9 * first(x).norm()  # float64 times the condition of M


@pytest.mark.parametrize("bias", [False, True])
def test_permuting_relu_neurons_changes_nothing(bias):
    torch.manual_seed(0)
    net, x = mlp((8, 6, 5, 2), bias=bias, seed=1).double(), images(8)
    options = {"rank": 6, "width": 20, "method": "calibrated"}
    first, _ = rf.sample(net, x, **options)
    order = torch.randperm(6)
    with torch.no_grad():
        net[1].weight.copy_(net[1].weight[order])
        net[3].weight.copy_(net[3].weight[:, order])
        if bias:
            net[1].bias.copy_(net[1].bias[order])
    second, _ = rf.sample(net, x, **options)
    assert (first(x) - second(x)).norm() <= 1e-9 * first(x).norm()  # float64 times the condition of M
