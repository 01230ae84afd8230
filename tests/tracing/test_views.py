# SPDX-License-Identifier: BSD-3-Clause
"""Channels that einops and einsum move, and channel axes that the user names."""

import pytest
import torch
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.tracing.agreement import distances

X = torch.randn(50, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps, self.act, self.rows, self.last = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 12), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(rearrange(self.maps(x), "n c h w -> n h w c"))
        x = F.gelu(self.rows(rearrange(x, "n h w c -> n (h w) c")))
        return self.last(repeat(reduce(x, "n p c -> n c", "mean"), "n c -> n (c two)", two=2))


def layers() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), Rearrange("n c h w -> n (h w) c"), nn.GELU(), nn.Linear(8, 12)),
        *(Rearrange("n (h w) c -> n c h w", h=4), nn.ReLU(), Reduce("n c h w -> n c", "mean"), nn.Linear(12, 4)),
    )


class Sums(nn.Module):
    """A matrix of parameters, and attention, by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.V = (nn.Parameter(torch.randn(n, m)) for n, m in ((3, 8), (8, 10)))
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("nchw,cd->ndhw", x, self.W).relu().flatten(2)
        scores = torch.einsum("ndp,ndq->npq", x, x).softmax(-1)
        x = F.silu(torch.einsum("npq,ndq->npd", scores, x))
        return self.last(F.gelu(torch.einsum("npd,de->npe", x, self.V)).mean(1))


class Attention(nn.Module):
    """Heads, with the activation between attention and projection: channels as columns, and as rows."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        self.rows, self.qkv, self.act, self.last = rows, nn.Conv2d(3, 24, 1), nn.Hardswish(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 2, 12, -1).chunk(3, 2)  # (N, heads, 4, positions)
        weights = (q.transpose(-2, -1) @ k).softmax(-1)
        if self.rows:
            y = self.act((v @ weights.transpose(-2, -1)).reshape(len(x), 8, 6, 6))
            return self.last(y.mean((2, 3)))
        y = self.act((weights @ v.transpose(-2, -1)).transpose(1, 2).flatten(2))
        return self.last(y.mean(1))


class LinearAttention(nn.Module):
    """A product of keys and values first: its rows and its columns are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.act, self.last = nn.Conv2d(3, 24, 1), nn.GELU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        return self.last(self.act(v @ k.transpose(-2, -1) @ q / 36).mean(2))


@pytest.mark.parametrize(
    "make, shapes",
    [
        (Functions, [(4, 4, 8), (16, 12)]),
        (layers, [(16, 8), (12, 4, 4)]),
        (Sums, [(8, 6, 6), (36, 8), (36, 10)]),
        (lambda: Attention(rows=True), [(8, 6, 6)]),
        (lambda: Attention(rows=False), [(36, 8)]),
        (LinearAttention, [(8, 36)]),
    ],
    ids=["functions of einops", "layers of einops", "einsum", "heads as rows", "heads as columns", "linear attention"],
)
def test_channels_that_are_moved(make, shapes):
    torch.manual_seed(1)
    net = make()
    table = rf.sites(net, X)
    assert table.route == "graph" and [site.z_shape for site in table] == shapes
    assert [site.channels for site in table] == [8, 12 if make is not Sums else 8, 10][: len(shapes)]
    assert [site.kept for site in table] == [None] * len(shapes)
    network = rf.sample(net, X, law="identity", holdout=0)[0]
    for same in (network, network.materialize()):
        assert distances(same(X), net(X)) < 5e-6  # rounding of polar factors and products


class Lost(nn.Module):
    """Sorted positions are not followed: the channels of the ReLU, its last axis, are not known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x).sort(1)[0])).mean((1, 2))


def test_channel_axes_by_name(tmp_path):
    """A site whose axis is not known is sampled on the axis that the user names; in files too."""
    net = Lost()
    assert rf.sites(net, X)[0].kept == "the channel axis of z, of shape (1, 3, 6, 8), is not known"
    with pytest.raises(
        ValueError, match="no site, wanted at least one pointwise non-linearity; 'act': the channel axis"
    ):
        rf.fit(net, X)
    axes = {"act": -1}
    assert rf.sites(net, X, channel_axes=axes)[0].channels == 8
    model = rf.fit(net, X, channel_axes=axes)
    network, report = model.sample(factor=2)
    assert report.sites[0].samples == 45 * 18 and report.sites[0].d == 8
    same = rf.sample(net, X, channel_axes=axes, law="identity", holdout=0)[0]
    assert distances(same(X), net(X)) < 5e-6
    rf.save(network, tmp_path / "network")
    rf.save_model(model, tmp_path / "model")
    assert torch.equal(rf.load(tmp_path / "network", net, channel_axes=axes)(X), network(X))
    assert torch.equal(rf.load_model(tmp_path / "model", net, channel_axes=axes).sample(factor=2)[0](X), network(X))


def test_channel_axes_that_are_none():
    for axes in (["act"], {0: 1}, "act"):
        with pytest.raises(TypeError, match="^channel_axes=.*: wanted a dict from names of sites to axes, or None"):
            rf.fit(Lost(), X, channel_axes=axes)
    with pytest.raises(
        ValueError, match="^channel_axes: 'other' is no non-linearity of the network, wanted one of act"
    ):
        rf.fit(Lost(), X, channel_axes={"other": 1})
    for axis in (2, 0, 7, "last"):
        with pytest.raises(
            ValueError, match=f"^channel_axes: {axis!r} for site 'act' with z of shape .*: wanted 1 or -1"
        ):
            rf.fit(Lost(), X, channel_axes={"act": axis})


def test_channels_after_upsampling():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    [site] = rf.sites(net, X)
    assert (site.channels, site.z_shape, site.kept) == (8, (8, 8, 8), None)


@pytest.mark.parametrize(
    "axis, before, after", [(1, nn.Conv2d(3, 1, 3), nn.Conv2d(16, 4, 1)), (-1, nn.Linear(6, 1), nn.Linear(16, 4))]
)
def test_random_features_of_a_single_channel(axis, before, after):
    """Nothing but the random features tells which axis it is."""
    [site] = rf.sites(nn.Sequential(before, rf.nn.RandomFeatures(1, 16, seed=0, axis=axis), after), X)
    assert (site.channels, site.kept) == (1, None)
