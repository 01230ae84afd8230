# SPDX-License-Identifier: BSD-3-Clause
"""Networks in the forms that people bring: exported, compiled, with token ids, with outputs that are objects."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.tracing.agreement import distances

IMAGES, ROWS, TOKENS = (120, 3, 8, 8), (120, 16), (120, 6, 12)


@dataclass
class Outputs:
    logits: Tensor
    states: tuple[Tensor, ...] | None = None


class Named(nn.Module):
    """Takes keywords, and returns an object, as those of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, return_dict: bool | None = None, **others: object) -> Outputs:
        h = F.gelu(self.a(x)) if others.get("scale") is None else x
        return Outputs(self.head(F.relu(self.b(h)).mean(1)), None if return_dict else (h,))


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 4)).eval()


def images() -> nn.Sequential:
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8, 4)).eval()


def exported(network: nn.Module, x: Tensor) -> nn.Module:
    return torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()


@pytest.mark.parametrize("wrap", [exported, lambda network, _: torch.compile(network, backend="eager")])
@pytest.mark.parametrize("network, shape", [(perceptron(), ROWS), (images(), IMAGES)])
def test_exported_and_compiled_networks(wrap, network, shape, one_thread):
    x = torch.randn(shape)
    same, report = rf.sample(wrap(network, x), x, law="identity")
    assert len(report.sites) == 2 and not report.kept
    torch.testing.assert_close(same(x[:7]), network(x[:7]), rtol=0, atol=5e-6)  # one order of float32 sums or another


def test_outputs_that_are_objects_stay_objects(one_thread):
    network, x = Named().double().eval(), torch.randn(TOKENS, dtype=torch.float64)
    same, report = rf.sample(network, x, law="identity", holdout=0)
    assert [site.site for site in report.sites] == ["gelu", "relu"]
    outputs, wanted = same(x), network(x)
    assert type(outputs) is Outputs and len(outputs.states) == 1
    torch.testing.assert_close((outputs.logits, outputs.states), (wanted.logits, wanted.states), rtol=0, atol=1e-8)


@pytest.mark.parametrize("script", [torch.jit.script, lambda network: torch.jit.trace(network, torch.randn(2, 16))])
def test_scripted_networks_are_refused(script):
    scripted = script(perceptron())
    for call in (rf.fit, rf.sample, rf.sites):
        with pytest.raises(
            TypeError, match="^reference: a module of TorchScript .*wanted the nn.Module that it was made"
        ):
            call(scripted, torch.randn(50, 16))


def test_a_graph_for_one_size_refuses_others():
    class OnSizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.a(x if x.size(2) % 2 else F.pad(x, (0, 1, 0, 1)))).mean((2, 3)))

    network = OnSizes().eval()
    sampled, _ = rf.sample(network, torch.randn(IMAGES))
    assert sampled(torch.randn(3, 3, 8, 8)).shape == (3, 5)
    with pytest.raises(
        ValueError, match=r"x of shape \(N, 3, 9, 9\), wanted \(N, 3, 8, 8\): the network was traced at"
    ):
        sampled(torch.randn(3, 3, 9, 9))


def test_a_network_without_sites_says_why():
    with pytest.raises(
        ValueError, match="no site, wanted at least one pointwise non-linearity; '1': it has parameters by"
    ):
        rf.fit(nn.Sequential(nn.Linear(16, 4), nn.PReLU(4), nn.Linear(4, 2)), torch.randn(ROWS))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.a, self.b = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(self.e(ids)))).mean(1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_token_ids_stay_integers(dtype, tmp_path, one_thread):
    """In every step: tracing, sampling, the plain wide network, files of networks and of models."""
    torch.manual_seed(0)
    network, ids, labels = Tokens().eval(), torch.randint(0, 50, (200, 6)).to(dtype), torch.randint(0, 5, (200,))
    same, _ = rf.sample(network, (ids, labels), law="identity")
    torch.testing.assert_close(same(ids.long()), network(ids.long()), rtol=0, atol=5e-6)
    model = rf.fit(network, (ids, labels))
    wide, report = model.sample(factor=4)
    assert [site.site for site in report.sites] == ["gelu"] and "held_out" in report.accuracy
    torch.testing.assert_close(wide.materialize()(ids.long()), wide(ids.long()), rtol=0, atol=5e-6)
    rf.save(wide, tmp_path / "wide.safetensors")
    assert torch.equal(rf.load(tmp_path / "wide.safetensors", network)(ids.long()), wide(ids.long()))
    rf.save_model(model, tmp_path / "model.safetensors")
    again, _ = rf.load_model(tmp_path / "model.safetensors", network).sample(factor=4)
    assert torch.equal(again(ids.long()), wide(ids.long()))


def test_integers_that_a_network_takes_as_numbers_are_numbers():
    network, x = perceptron(), torch.randint(0, 9, (100, 16))
    same, _ = rf.sample(network, x, law="identity")
    torch.testing.assert_close(same(x.float()), network(x.float()), rtol=0, atol=5e-5)  # outputs are of order 10


def test_a_network_that_keeps_results_of_a_call(one_thread):
    """As hooks and attention maps are kept: torch does not copy tensors with a history."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.maps = nn.Linear(16, 8), nn.Linear(8, 3), [{}]

        def forward(self, x: Tensor) -> Tensor:
            self.last = torch.relu(self.a(x))
            self.maps[0]["last"] = self.last * 2
            return self.b(self.last)

    network, x = Keeps().double().eval(), torch.randn(ROWS, dtype=torch.float64)
    wanted = network(x)
    assert not network.last.is_leaf
    same, _ = rf.sample(network, x, law="identity", holdout=0)
    torch.testing.assert_close(same(x), wanted, rtol=0, atol=1e-8)
    assert not network.last.is_leaf


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with one slope a or one for each channel."""

    def __init__(self, slopes: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(1, slopes, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.a * x) ** 2 / self.a


@pytest.mark.parametrize("slopes, kept", [(1, None), (8, "it has parameters by channel")])
def test_snake(slopes, kept):
    """With slopes by channel it is listed, and the rest of the network is sampled."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), Snake(slopes), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )
    x = torch.randn(40, 3, 8, 8)
    table = rf.sites(net, x)
    assert {site.kept for site in table if site.name != "3"} == {kept}
    network = rf.sample(net, x, law="identity", holdout=0)[0]
    assert distances(network(x), net(x)) < 5e-6
