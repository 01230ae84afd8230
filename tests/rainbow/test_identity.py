# SPDX-License-Identifier: BSD-3-Clause
"""For every architecture: with the reference's own neurons the sampled network is the reference, to rounding. Written
out, it is the same function and a plain module, with the same gradients. It runs in half precision."""

import copy
from collections.abc import Callable
from functools import partial

import architectures
import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks.resnet import resnet_cifar, resnet_imagenet
from rainbow_fast.networks.vgg import vgg

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
F64 = torch.float64
IMAGES = 20


def trained(make: Callable[..., nn.Module], *image: int, **options: object) -> nn.Module:
    """As if trained: signals of one size in all layers, batch norms that have seen images and have affine parts."""
    net = make(**options, seed=0)
    generator = torch.Generator().manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.3, generator=generator)
            nn.init.normal_(part.bias, 0, 0.3, generator=generator)
    with torch.no_grad():
        net.train()(torch.randn(32, *image, generator=generator))
    net.image = image
    return net.eval()


def built(kind: type[nn.Module], **options: object) -> Callable[[], nn.Module]:
    return partial(architectures.build, kind, **options)


CIFAR, IMAGENET = {"depth": 8, "width": 4}, {"blocks": (1, 1), "width": 4, "classes": 10}
NETS = {
    "vgg": partial(trained, vgg, 3, 32, 32, depth=11, width=2),
    "vgg batch norm": partial(trained, vgg, 3, 32, 32, depth=11, width=2, batch_norm="before", dropout=0.5),
    "resnet cifar": partial(trained, resnet_cifar, 3, 8, 8, **CIFAR),
    "resnet cifar preactivation": partial(trained, resnet_cifar, 3, 8, 8, **CIFAR, preactivation=True),
    "resnet imagenet": partial(trained, resnet_imagenet, 3, 16, 16, **IMAGENET),
    "resnet imagenet preactivation": partial(trained, resnet_imagenet, 3, 16, 16, **IMAGENET, preactivation=True),
    "residual": built(architectures.Residual),
    "mixer": built(architectures.Mixer),
    "convnext": built(architectures.ConvNeXt, image=(3, 8, 8)),
    "transformer": built(architectures.Transformer),
    "unet": built(architectures.UNet, image=(3, 8, 8)),
}


@pytest.fixture(scope="module", params=NETS)
def model(request) -> tuple[nn.Module, Tensor, rf.RainbowModel]:
    net = NETS[request.param]().double()
    x = torch.randn(IMAGES, *net.image, generator=torch.Generator().manual_seed(1), dtype=F64)
    return net, x, rf.fit(net, x, holdout=0)


@pytest.mark.parametrize(
    "options", [{"method": "paper"}, {"method": "calibrated"}, {"method": "regression", "ridge": 0.0}], ids=str
)
@torch.no_grad()
def test_identity(model, options):
    """With z' = zh, on the inputs of the alignment set, which are in the range of M."""
    net, x, fitted = model
    network, report = fitted.sample(law="identity", **options)
    assert report.kept == {} and len(report.sites) == len(network.sampled) == len(fitted.sites)
    # 1e-8: rounding of float64 times the condition number of M, at about ten sites
    assert (network(x) - net(x)).norm() <= 1e-8 * net(x).norm()


def test_written_out_it_is_the_same_function_with_the_same_gradients_and_plain(model):
    net, x, fitted = model
    network, _ = fitted.sample(factor=2, method="calibrated")
    assert all(network.site(name).offset is not None for name in network.sampled)
    plain = network.materialize()
    assert not any(type(part).__module__.startswith("rainbow_fast") for part in plain.modules())
    assert not plain.training
    inputs = [x[:3].clone().requires_grad_() for _ in range(2)]
    outputs = [module(x) for module, x in zip((network, plain), inputs, strict=True)]
    assert (outputs[0] - net(x[:3])).norm() > 1e-3 * outputs[0].norm(), "another network than the reference"
    # Two orders of the same sums, over about ten layers.
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-11)
    for out in outputs:
        out.square().sum().backward()
    assert inputs[0].grad.isfinite().all() and inputs[0].grad.any()
    # 1e-9: backward through the same layers, with terms that cancel
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-9, atol=1e-9 * float(inputs[0].grad.abs().max()))
    head = list(network.parameters())[-1]  # the bias of the classifier, which is written as it is
    torch.testing.assert_close([p for p in plain.parameters() if p.shape == head.shape][-1].grad, head.grad)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@torch.no_grad()
def test_in_half_precision(model):
    """With weights and images in bfloat16, it is as near to the float64 network as the reference is in bfloat16."""
    net, x, _ = model
    half, rounded = copy.deepcopy(net).bfloat16(), x.bfloat16()
    exact, same = copy.deepcopy(half).double(), rounded.double()
    wanted, wide = rf.sample(exact, same, holdout=0, method="calibrated")
    network, report = rf.sample(half, rounded, holdout=0, method="calibrated")
    # The activations of every site are rounded once more; written out, those of the wide layers too.
    allowed = 5 * (half(rounded).double() - exact(same)).norm() / exact(same).norm()
    for module in (network, network.materialize()):
        out = module(rounded)
        assert out.dtype == torch.bfloat16 and out.isfinite().all()
        assert (out.double() - wanted(same)).norm() <= allowed * wanted(same).norm()
    # Each number is rounded to 2^-9 of itself, at a few layers before; at most means over 20 images.
    for site, close in zip(report.sites, wide.sites, strict=True):
        assert site.error == pytest.approx(close.error, rel=2**-4, abs=2**-12), site.site
