# SPDX-License-Identifier: BSD-3-Clause
"""The list of what would be sampled, and data that does not fit into memory."""

from pathlib import Path

import architectures
import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.data.gather import gather
from rainbow_fast.networks import cnn, mlp, resnet_imagenet

KINDS = (architectures.Mixer, architectures.ConvNeXt, architectures.Transformer, architectures.UNet)


def test_the_sites_of_a_residual_network():
    sites = rf.sites(resnet_imagenet(width=4), torch.randn(1, 3, 64, 64))
    assert [site.name for site in sites[:3]] == ["activation", "layer1.0.activation", "layer1.0.activation_1"]
    assert len(sites) == 17 and all(site.kept is None for site in sites)
    assert (sites[0].activation, sites[0].fused) == ("ReLU + MaxPool2d", False)
    assert (sites[0].channels, sites[0].z_shape, sites[0].phi_shape) == (4, (4, 32, 32), (4, 16, 16))
    *text, below = str(sites).splitlines()
    assert below == "17 of 17 non-linearities sampled, by graph"
    assert len(text) == 18 and text[0].split() == ["site", "non-linearity", "channels", "z", "phi", "sampled"]
    assert text[1].split()[-4:] == ["4", "4x32x32", "4x16x16", "yes"]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_that_are_sampled(kind):
    net = architectures.build(kind, seed=0)
    x = torch.randn(150, *net.image)
    _, report = rf.sample(net, x)
    assert [(s.name, s.channels) for s in rf.sites(net, x)] == [(s.site, s.d) for s in report.sites]


def test_without_data_there_are_no_shapes():
    sites = rf.sites(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid()))
    assert [(site.channels, site.kept) for site in sites] == [(None, None), (None, "an output activation, not named")]
    assert str(sites).splitlines()[2].split()[2:5] == ["-", "-", "-"]


def test_a_loader_beyond_the_budget_lies_in_a_file(tmp_path: Path):
    x, y = torch.randn(300, 1, 14, 14), torch.randint(3, (300,))
    loader = [(x[i : i + 70], y[i : i + 70]) for i in range(0, 300, 70)]
    images, labels, _ = gather(loader, "data", memory_budget=100_000, scratch=tmp_path)
    assert torch.equal(images, x) and torch.equal(labels, y)
    assert not list(tmp_path.iterdir()), "the file has no name"
    mapped = images.untyped_storage().data_ptr()
    assert any(int(line.split("-")[0], 16) <= mapped < int(line.split("-")[1].split()[0], 16) and "deleted" in line
               for line in Path("/proc/self/maps").read_text().splitlines())  # fmt: skip
    net = cnn((1, 4, 6), image_size=14, kernel_size=3, seed=0)
    outputs = [
        rf.sample(net, data, factor=2, memory_budget=budget)[0](x) for data, budget in (((x, y), None), (loader, 0))
    ]
    assert torch.equal(*outputs)


def test_batches_must_agree():
    parts: list[Tensor] = [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64)]
    with pytest.raises(ValueError, match=r"data: samples of dtypes torch.float32 and torch.float64, wanted one dtype"):
        rf.fit(mlp((3, 4, 2)), parts)
    with pytest.raises(ValueError, match="memory_budget=-1: wanted memory_budget >= 0"):
        rf.fit(mlp((3, 4, 2)), parts[0], memory_budget=-1)
    with pytest.raises(ValueError, match="scratch_dir: no folder /nowhere"):
        rf.fit(mlp((3, 4, 2)), parts[0], scratch_dir="/nowhere")


def test_every_layer_sees_each_image_once_for_each_network():
    """Once in fit; then, in one pass of the reference for all samples, once more and once for each: linear in depth. In
    addition there are the comparisons: in fit one of an eighth, three of 16 samples and three of one sample; four of 8
    samples for each network."""
    seen: dict[int, int] = {}
    layers: list[nn.Module] = []
    for number in range(5):
        linear = nn.Linear(6, 6)
        linear.register_forward_hook(
            lambda _, inputs, result, number=number: seen.update({number: seen[number] + len(inputs[0])})
        )
        layers += [linear, nn.Tanh()]
    net, images, samples = nn.Sequential(*layers, nn.Linear(6, 2)), 200, 3
    seen.update(dict.fromkeys(range(5), 0))
    model = rf.fit(net, torch.randn(images, 6))  # a tenth is held out, one image shows the shapes
    aligned = images - images // 10
    assert set(seen.values()) == {aligned + 1 + aligned // 8 + 3 * 16 + 3}
    seen.update(dict.fromkeys(range(5), 0))
    model.sample_many([{"network_index": k, "factor": 2} for k in range(samples)])
    few = 4 * 8 * samples
    assert list(seen.values()) == [images + few, *[(1 + samples) * images + few] * 4], (
        "the first site's input is shared"
    )
