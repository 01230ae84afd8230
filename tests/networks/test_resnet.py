# SPDX-License-Identifier: BSD-3-Clause
"""Residual and VGG networks: the published shapes and weights, the two orders of a block, options and errors."""

import pytest
import torch
from here import DATA
from torch import Tensor, nn
from torch.nn.functional import pad

from rainbow_fast import data
from rainbow_fast.networks import accuracy, resnet_cifar, resnet_imagenet, train, vgg


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth, parameters", [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_resnet_cifar_has_the_papers_parameters(depth, parameters):
    """The parameters of table 6 of the paper, in millions: 0.27, 0.85, 1.7."""
    assert count(resnet_cifar(depth, seed=0)) == parameters


def test_resnet_cifar_loads_published_weights_and_reaches_their_accuracy(cifar10_folder):
    weights = DATA / "resnet20_cifar10" / "resnet20.pt"
    if not weights.exists():
        pytest.skip("no weights: RAINBOW_FAST_DATA names the folder that holds resnet20_cifar10/resnet20.pt")
    net = resnet_cifar(20)
    net.load_state_dict(torch.load(weights, weights_only=True))
    x, y = data.cifar10(cifar10_folder)[2:]
    assert accuracy(net, x[:1000], y[:1000]) == 0.913  # the two largest logits are at least 0.05 apart


@pytest.mark.parametrize("blocks, parameters", [((2, 2, 2, 2), 11_689_512), ((3, 4, 6, 3), 21_797_672)])
def test_resnet_imagenet_has_torchvisions_keys_and_parameters(blocks, parameters):
    net = resnet_imagenet(blocks, seed=0)
    assert count(net) == parameters
    norms = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    wanted = {"conv1.weight", *(f"bn1.{name}" for name in norms), "fc.weight", "fc.bias"}
    for stage, number in enumerate(blocks, start=1):
        for i in range(number):
            for part in (1, 2):
                wanted |= {f"layer{stage}.{i}.conv{part}.weight", *(f"layer{stage}.{i}.bn{part}.{n}" for n in norms)}
        if stage > 1:
            wanted |= {f"layer{stage}.0.downsample.0.weight", *(f"layer{stage}.0.downsample.1.{n}" for n in norms)}
    assert set(net.state_dict()) == wanted


def norm(x: Tensor, part: nn.BatchNorm2d) -> Tensor:
    return nn.functional.batch_norm(x, part.running_mean, part.running_var, part.weight, part.bias)


def conv(x: Tensor, part: nn.Conv2d, stride: int = 1) -> Tensor:
    return nn.functional.conv2d(x, part.weight, stride=stride, padding=part.weight.shape[-1] // 2)


@pytest.mark.parametrize("image_size", [8, 7])
@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("make", [resnet_cifar, resnet_imagenet])
def test_a_block_that_changes_the_shape_is_its_formula(make, preactivation, image_size):
    net = make(width=3, preactivation=preactivation, activation=nn.Tanh, seed=0)
    net.train()(images(16, 3, 64, 64))
    block, x = net.eval().layer2[0], images(2, 3, image_size, image_size)

    def shortcut(x: Tensor) -> Tensor:
        if make is resnet_cifar:  # three channels more: one before and two after
            return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))
        x = conv(x, block.downsample[0], 2)
        return x if preactivation else norm(x, block.downsample[1])

    if preactivation:
        y = norm(x, block.bn1).tanh()
        wanted = shortcut(y) + conv(norm(conv(y, block.conv1, 2), block.bn2).tanh(), block.conv2)
    else:
        y = norm(conv(x, block.conv1, 2), block.bn1).tanh()
        wanted = (shortcut(x) + norm(conv(y, block.conv2), block.bn2)).tanh()
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("preactivation", [False, True])
def test_order_of_the_parts(preactivation):
    names = [name for name, _ in resnet_imagenet((1, 1), width=2, preactivation=preactivation).named_children()]
    end = ["avgpool", "flatten", "fc"]
    stem, last = ["conv1", "bn1", "activation", "maxpool"], ["layer1", "layer2"]
    if preactivation:
        stem, last = ["conv1", "maxpool"], [*last, "bn", "activation"]
    assert names == [*stem, *last, *end]
    block = resnet_cifar(8, preactivation=preactivation).layer3[0]
    called = []
    block.activation.register_forward_hook(lambda *_: called.append(1))
    block(torch.zeros(1, 32, 4, 4))
    assert len(called) == 2  # one module, two sites


def test_vgg_has_torchvisions_features():
    """The paper's counts of parameters, without the classifier, which has another size."""
    assert count(vgg(16, seed=0).features) == 14_714_688
    assert count(vgg(11, batch_norm="before").features) == 9_225_984  # 9,220,480, and two for each of 2,752 channels
    kinds = [type(part).__name__ for part in vgg(13, width=2, batch_norm="after", dropout=0.5).features]
    assert kinds[:7] == ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d"]
    assert kinds.count("Conv2d") == 10 and kinds.count("MaxPool2d") == 5


def test_vgg_options():
    net = vgg(19, width=2, image_channels=1, image_size=64, classes=4, activation=nn.GELU, dropout=0.5, seed=0)
    kinds = [type(part).__name__ for part in net.classifier]
    assert kinds == ["Dropout", "Linear", "GELU", "Dropout", "Linear", "GELU", "Linear"]
    assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 4)
    assert len([part for part in net.modules() if isinstance(part, nn.Conv2d | nn.Linear)]) == 19
    assert [type(part).__name__ for part in vgg(11, width=1).classifier][:2] == ["Linear", "ReLU"]


@pytest.mark.parametrize("build", [resnet_cifar, resnet_imagenet, vgg])
def test_a_seed_fixes_the_weights_and_leaves_the_global_state(build):
    before = torch.get_rng_state()
    first, second, other = (build(width=2, image_channels=1, classes=4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    assert first(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: resnet_cifar(18), "depth: wanted 6 k . 2 with k >= 1 blocks in each stage, got 18"),
        (lambda: resnet_cifar(2), "depth: wanted 6 k . 2 with k >= 1 blocks in each stage, got 2"),
        (lambda: resnet_cifar(width=0), "width=0: wanted width >= 1"),
        (lambda: resnet_cifar(seed=-1), r"seed=-1: wanted 0 <= seed < 2\^63"),
        (
            lambda: resnet_imagenet(()),
            r"blocks: wanted the number of blocks in each stage, at least one stage; got \(\)",
        ),
        (lambda: resnet_imagenet((2, 0)), "blocks=0: wanted blocks >= 1"),
        (lambda: vgg(12), "depth: wanted 11, 13, 16 or 19, got 12"),
        (lambda: vgg(width=-1), "width=-1: wanted width >= 1"),
        (lambda: vgg(image_size=28), "image_size: wanted a multiple of 32, .*; got 28"),
        (lambda: vgg(batch_norm="both"), "batch_norm: wanted None"),
        (lambda: vgg(dropout=1.0), "dropout: wanted a probability from 0 to below 1, got 1.0"),
    ],
)
def test_builders_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("preactivation", [False, True])
def test_a_resnet_learns_with_its_batch_norm_and_the_published_recipe(preactivation):
    """Digits with 8 x 8 pixels, and enough passes to be far above chance (0.1); the last batch is small."""
    pytest.importorskip("sklearn")
    x, y, x_test, y_test = data.digits()
    net = resnet_cifar(8, width=4, image_channels=1, preactivation=preactivation, seed=0)
    train(net, x, y, epochs=4, lr=0.1, weight_decay=1e-4, batch_size=64, schedule="cosine", crop=1)
    assert accuracy(net, x_test, y_test) > 0.75
