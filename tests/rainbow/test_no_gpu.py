# SPDX-License-Identifier: BSD-3-Clause
"""A whole sampled network without a GPU: on fake `cuda` and `meta` tensors, and with stubbed launchers."""

import pytest
import torch
from here import draw
from no_gpu import CUDA, Elsewhere, move, moved, stubbed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rainbow_fast as rf

OPTIONS = [
    {"method": "paper"},
    {"method": "calibrated"},
    {"method": "paper", "rank": 5},
    {"method": "paper", "law": "bootstrap", "smoothing": 0.5},
    {"method": "paper", "law": "orthonormal", "width": 5},
]


def reference(maps: bool) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if not maps:
            layers = [nn.Flatten(), nn.Linear(128, 10), nn.ReLU(), nn.Linear(10, 8), nn.GELU(), nn.Linear(8, 3)]
            return nn.Sequential(*layers).eval(), draw(60, 2, 8, 8)
        layers = [nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 2), nn.GELU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(24, 10), nn.Tanh(), nn.Linear(10, 3)).eval(), draw(60, 2, 8, 8)


def sampled(options: dict, maps: bool = True) -> rf.RainbowNetwork:
    network, x = reference(maps)
    wide, _ = rf.fit(network, x, holdout=0.0).sample(**({} if "width" in options else {"factor": 2}), **options)
    return wide.requires_grad_(True)


@pytest.mark.unpoisoned
@pytest.mark.filterwarnings("ignore:.*few samples.*", "ignore:site .*")
@pytest.mark.parametrize("device", ["cuda", "meta"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_under_fake_tensors(options: dict, device: str) -> None:
    """Forward and backward passes; every result is on the device of the input.

    Without CUDA, torch has neither gradients nor convolutions of fake `cuda` tensors. Then a network of linear layers
    runs forward.
    """
    network = sampled(options, maps=device == "meta")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:

        def fake(t: Tensor) -> Tensor:
            return torch.empty(t.shape, dtype=t.dtype, device=device)

        for part in network.modules():
            for name, p in part._parameters.items():
                part._parameters[name] = None if p is None else nn.Parameter(fake(p))
            for name, b in part._buffers.items():
                part._buffers[name] = None if b is None else fake(b)
        x = torch.empty(7, 2, 8, 8, device=device, requires_grad=device == "meta")
        with torch.set_grad_enabled(x.requires_grad):
            y = network(x)
        assert y.shape == (7, 3) and y.device.type == device
        if device == "cuda":
            return
        y.square().sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape and x.grad.device.type == device
        assert all(p.grad is not None and p.grad.device.type == device for p in network.parameters())


BUILT = ["both", "triton"]
OF_NETWORKS = {"triton random_features.random_features_projection", "triton random_features_gradient"}


@pytest.mark.unpoisoned
@pytest.mark.filterwarnings("ignore:site .*")
@pytest.mark.parametrize("built", BUILT)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_waits_for_the_gpu(options: dict, built: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is read on the host, in the forward or backward pass, and no CPU tensor meets one of the GPU."""
    network = move(sampled(options))
    with stubbed(built, monkeypatch) as recorder:
        x = moved(torch.zeros(7, 2, 8, 8, requires_grad=True))
        y = network(x)
        assert y.shape == (7, 3) and y.device == CUDA
        y.backward(moved(torch.ones(7, 3)))
        assert isinstance(x.grad, Elsewhere) and x.grad.shape == x.shape
        assert all(isinstance(p.grad, Elsewhere) for p in network.parameters())
    assert OF_NETWORKS <= set(recorder.launched), set(recorder.launched)


OPS = {
    "gaussian": lambda x, f: rf.gaussian(3, 4, seed=[1, 2], device=CUDA),
    "gaussian, out": lambda x, f: rf.gaussian(64, 6, seed=1, out=x.detach()),
    "cross_covariance": lambda x, f: rf.cross_covariance(x, [x, f(x)], activation="relu", center=True)[0],
    "cross_covariance_": lambda x, f: rf.cross_covariance_(moved(torch.zeros(6, 6, dtype=torch.float64)), x.detach()),
    "patch_covariance": lambda x, f: rf.cross_covariance(x.view(64, 1, 2, 3), patch=2),
    "sample_project_align": lambda x, f: rf.sample_project_align(5, x, seed=[1, 2]),
    "random_features": lambda x, f: rf.random_features(x, 5, seed=1),
    "random_features_covariance": lambda x, f: rf.random_features_covariance(x, x, 5, seed=[1, 2], x_center=x[0])[0],
    "random_features_projection": lambda x, f: rf.random_features_projection(x, x[:4, :5], seed=1),
    "random_features, G": lambda x, f: rf.random_features(x, 7, G=x[:7]),
}


@pytest.mark.unpoisoned
@pytest.mark.parametrize("built", BUILT)
@pytest.mark.parametrize("call", OPS.values(), ids=OPS)
def test_no_op_waits(call, built: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with stubbed(built, monkeypatch) as recorder:
        x = moved(torch.zeros(64, 6, requires_grad=True))
        y = call(x, lambda t: 2 * t)
        assert isinstance(y, Elsewhere)
        if y.requires_grad:
            y.backward(moved(torch.zeros(y.shape, dtype=y.dtype, device="cpu")))
            assert isinstance(x.grad, Elsewhere)
    assert recorder.launched


@pytest.mark.unpoisoned
def test_the_refusals_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faults that the tests above look for are found."""
    x = moved(torch.zeros(3))
    with stubbed("both", monkeypatch):
        for wait in (
            lambda: x.sum().item(),
            x.tolist,
            x.cpu,
            lambda: bool((x > 0).any()),
            lambda: torch.zeros(3).copy_(x),
        ):
            with pytest.raises(AssertionError, match="the host waits for the GPU"):
                wait()
        with pytest.raises(AssertionError, match=r"of a CPU tensor of shape \(3,\) and one on the GPU"):
            x + torch.ones(3)
        assert (moved(torch.ones(2)) * 2).device == CUDA
