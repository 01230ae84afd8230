# SPDX-License-Identifier: BSD-3-Clause
"""Networks as people bring them: which non-linearities are sampled, which are not and why; all give the reference back.

Each network has one cause that made a trace fail, or that let it take the wrong numbers for neurons.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf

IMAGES, ROWS, TOKENS = (120, 3, 8, 8), (120, 16), (120, 6, 12)


class Between(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, function: Callable, channels: int = 16, inside: int = 16, last: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(inside, 16, 3, padding=1)
        self.function, self.act, self.head = function, last or nn.ReLU(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.b(self.function(self.a(x)))).mean((2, 3)))


class Rows(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.a, self.b, self.head, self.function = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.function(self.a(x)))))


class Squeeze(nn.Module):
    """Squeeze and excitation with a function of the scale."""

    def __init__(self, scale: Callable, *, last: Callable = F.silu) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)
        self.f, self.g, self.scale, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), scale, last

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.a(x))
        s = self.scale(self.g(F.relu(self.f(x.mean((2, 3), keepdim=True)))))
        return self.head(F.gelu(self.b(x * s)).mean((2, 3)))


class Attended(nn.Module):
    """ECA: a gate of one channel from a convolution over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.head = nn.Conv2d(3, 16, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = torch.sigmoid(self.c(x.mean((2, 3)).view(x.shape[0], 1, -1))).view(x.shape[0], -1, 1, 1)
        return self.head((x * y.expand_as(x)).mean((2, 3)))


class Feed(nn.Module):
    """A feed-forward block with a gate, such as GEGLU."""

    def __init__(self, function: Callable, parts: int = 2) -> None:
        super().__init__()
        self.a, self.b, self.head, self.function = (
            nn.Linear(12, parts * 16),
            nn.Linear(16, 12),
            nn.Linear(12, 4),
            function,
        )

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.a(x).chunk(2, -1)
        return self.head(F.relu(self.b(self.function(u, v))).mean(1))


class Coordinates(nn.Module):
    """A bias by a small network of coordinates, which do not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mlp, self.out, self.head = (
            nn.Conv2d(3, 16, 3),
            nn.Linear(2, 64),
            nn.Linear(64, 16),
            nn.Linear(16, 5),
        )
        self.register_buffer("grid", torch.randn(30, 2))

    def forward(self, x: Tensor) -> Tensor:
        bias = 16 * torch.sigmoid(self.out(F.relu(self.mlp(self.grid))).view(5, 6, 16)).mean((0, 1))
        return self.head(F.relu(self.a(x)).mean((2, 3)) + bias)


class OnSizes(nn.Module):
    """Branches on sizes, writes by index, makes tensors of the size of the batch, and counts with sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 == 0:
            x = F.pad(x, (0, 1, 0, 1))
        batch, _, height, width = x.shape
        y = torch.zeros(batch, 16, height - 2, width - 2, dtype=x.dtype)
        y[:, :8] = 1.0
        assert x.dim() == 4 and batch > 0
        y = F.gelu(self.b(self.act(self.a(x)) + y)).reshape(batch, 16, -1)
        return self.head(y.mean(-1) / len(range(int(height))))


class Options(nn.Module):
    """Has optional inputs that are not used, asks for the number of samples, and expands a constant to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 0.5) -> Tensor:
        bias = torch.arange(16.0, dtype=x.dtype).unsqueeze(0).expand(len(x), -1)
        y = F.silu(self.a(x) * scale + bias.view(len(x), 16, 1, 1))
        if mask is not None:
            y = y * mask
        if y.size(1) == 16 and not self.training:
            y = y.view(x.size(0) * 2, 8, *y.shape[2:]).view(x.size(0), 16, 6, 6)
        return self.head(F.relu(self.b(y)).mean((2, 3)))


class Products(nn.Module):
    """Layers that are written as products with parameters, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.b = (nn.Parameter(torch.randn(*s) / 4) for s in ((12, 32), (5, 32), (32,)))

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(torch.addmm(self.b, x.view(-1, x.size(-1)), self.w).view(*x.size()[:-1], 32))
        return (torch.tanh(h @ self.w.T @ self.w) @ self.v.T).mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.a, self.head = nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(self.r(x)[0][:, -1])))


class Encoder(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 32, batch_first=True, **options)  # type: ignore[arg-type]
        self.t, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.t(x).mean(1))


def snake(x: Tensor) -> Tensor:
    return x + torch.sin(x).square() / 1.5


def gelu_of_gpt2(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3)))


torch.manual_seed(0)
# name: network, shape of the data, sampled sites, and the others with a part of their reasons
CASES = {
    "gelu of gpt-2": (Between(gelu_of_gpt2), IMAGES, ["mul", "act"], {}),
    "gelu by erf": (Between(lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))), IMAGES, ["gelu", "act"], {}),
    "silu": (Between(lambda x: x * x.sigmoid()), IMAGES, ["silu", "act"], {}),
    "quick gelu": (Between(lambda x: x * torch.sigmoid(1.702 * x)), IMAGES, ["mul", "act"], {}),
    "hard swish": (Between(lambda x: x * F.relu6(x + 3) / 6), IMAGES, ["mul", "act"], {}),
    "relu and swish": (Between(lambda x: F.relu(x) * F.relu(x).sigmoid()), IMAGES, ["mul", "act"], {}),
    "snake": (Rows(snake), ROWS, ["add", "relu"], {}),
    "abs": (Rows(torch.abs), ROWS, ["abs", "relu"], {}),
    "sin": (Rows(torch.sin), ROWS, ["sin", "relu"], {}),
    "erf": (Rows(torch.erf), ROWS, ["erf", "relu"], {}),
    "clamp": (Rows(lambda x: x.clamp(min=0)), ROWS, ["relu", "relu_1"], {}),
    "maximum": (Rows(lambda x: torch.maximum(x, torch.zeros_like(x))), ROWS, ["relu", "relu_1"], {}),
    "threshold": (Rows(nn.Threshold(0.1, 0.0)), ROWS, ["function", "relu"], {}),
    "rrelu": (Rows(nn.RReLU()), ROWS, ["function", "relu"], {}),
    "slopes by channel": (Rows(nn.PReLU(12)), ROWS, ["relu"], {"function": "parameters by channel"}),
    "exponentials": (Rows(lambda x: x.exp() / (1 + x.exp()).square()), ROWS, ["relu"], {"div": "as in normalisations"}),
    "moved axis": (Between(lambda x: F.gelu(x.movedim(1, -1)).movedim(-1, 1)), IMAGES, ["gelu", "act"], {}),
    "swapped axes": (Between(lambda x: F.gelu(x.swapaxes(1, 3)).swapaxes(3, 1)), IMAGES, ["gelu", "act"], {}),
    "matrix transpose": (
        Between(lambda x: F.gelu(x.transpose(1, 2)).transpose(1, 2)),
        IMAGES,
        ["act"],
        {"gelu": "channels are axis 2 of z"},
    ),
    "sequence": (
        Between(lambda x: F.gelu(x.flatten(2).transpose(1, 2)).mT.unflatten(2, (8, 8))),
        IMAGES,
        ["gelu", "act"],
        {},
    ),
    "chunk": (Between(lambda x: F.relu(x.chunk(2, 1)[0]) + x[:, 16:], 32), IMAGES, ["relu", "act"], {}),
    "split and joined": (
        Between(lambda x: F.relu(torch.cat([t * 2 for t in x.split(8, 1)], 1))),
        IMAGES,
        ["relu", "act"],
        {},
    ),
    "pixel shuffle": (
        Between(lambda x: F.pixel_unshuffle(F.relu(F.pixel_shuffle(x, 2)), 2)),
        IMAGES,
        ["relu", "act"],
        {},
    ),
    "heads": (
        Between(lambda x: F.relu(x.view(len(x), 4, 4, 8, 8)).flatten(1, 2)),
        IMAGES,
        ["act"],
        {"relu": "is not known"},
    ),
    "squeeze": (Squeeze(torch.sigmoid), IMAGES, ["silu", "relu", "gelu"], {"sigmoid": "a gate"}),
    "gate behind views": (
        Squeeze(lambda s: torch.sigmoid(s).flatten(1).view(-1, 16, 1, 1)),
        IMAGES,
        ["silu", "relu", "gelu"],
        {"sigmoid": "a gate"},
    ),
    "hard gate": (Squeeze(lambda s: F.relu6(s + 3) / 6), IMAGES, ["silu", "relu", "gelu"], {"relu6": "a gate"}),
    "one channel": (Attended(), IMAGES, ["relu"], {"sigmoid": "channel"}),
    "geglu": (Feed(lambda u, v: u * F.gelu(v)), TOKENS, ["gelu", "relu"], {}),
    "swiglu": (Feed(lambda u, v: torch.multiply(F.silu(u), v)), TOKENS, ["silu", "relu"], {}),
    "gated tanh": (
        Feed(lambda u, v: torch.tanh(u) * torch.sigmoid(v)),
        TOKENS,
        ["tanh", "relu"],
        {"sigmoid": "a gate"},
    ),
    "glu": (Feed(lambda u, v: F.glu(torch.cat([u, v], -1))), TOKENS, ["relu"], {"glu": "a gated linear unit"}),
    "coordinates": (Coordinates(), IMAGES, ["relu"], {}),
    "sizes": (OnSizes(), IMAGES, ["act", "gelu"], {}),
    "options": (Options(), IMAGES, ["silu", "relu"], {}),
    "products": (Products(), TOKENS, ["gelu", "tanh"], {}),
    "recurrent": (Recurrent(), TOKENS, ["relu"], {"r": "a recurrent layer"}),
    "transformer": (Encoder(), TOKENS, ["t.layers.0.relu", "t.layers.1.relu"], {}),
    "norm first": (Encoder(norm_first=True, activation="gelu"), TOKENS, ["t.layers.0.gelu", "t.layers.1.gelu"], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_sampled_and_what_is_not(case, one_thread):
    """Every site but gates is sampled, by the graph; and with the neurons of the reference the outputs are the same."""
    network, shape, sampled, others = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    network = network.double().eval()
    listed = rf.sites(network, x)
    assert listed.route == "graph"
    assert [site.name for site in listed if site.kept is None] == sampled
    reasons = {site.name: site.kept for site in listed if site.kept is not None}
    assert reasons.keys() == others.keys() and all(others[name] in str(reason) for name, reason in reasons.items())
    assert f"{len(sampled)} of {len(sampled) + len(others)} non-linearities sampled, by graph" in str(listed)
    same, report = rf.sample(network, x, law="identity", holdout=0)  # a neuron may be active in held-out samples only
    assert [site.site for site in report.sites] == sampled and report.kept.keys() == others.keys()
    wanted = network(x[:7])
    assert (same(x[:7]) - wanted).abs().max() < 1e-8 * wanted.abs().max()  # both in float64
    wide, _ = rf.sample(network, x, factor=2)
    assert (wide.materialize()(x[:5]) - wide(x[:5])).abs().max() < 1e-8 * wanted.abs().max()
