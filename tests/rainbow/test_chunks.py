# SPDX-License-Identifier: BSD-3-Clause
"""The memory format of a run: channels last for images on a CPU, if the network runs on it."""

import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.rainbow import prepare
from rainbow_fast.rainbow.chunks import freshly_laid, is_channels_last, runs_channels_last
from rainbow_fast.rainbow.prepare import chunk_size, site_shapes
from rainbow_fast.tracing.trace import trace

X = torch.randn(60, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Views(nn.Module):
    """A network that views a feature map as rows, as many published ones do."""

    def __init__(self, reshapes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.head = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(4 * 36, 3)
        self.reshapes = reshapes

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu(self.conv(x))
        return self.head(maps.reshape(maps.size(0), -1) if self.reshapes else maps.view(maps.size(0), -1))


def test_networks_that_view_maps_run_on_contiguous_images():
    assert runs_channels_last([trace(Views(reshapes=True))], X[:1])
    assert not runs_channels_last([trace(Views(reshapes=False))], X[:1])
    assert not runs_channels_last([trace(Views(True)), trace(Views(False))], X[:1])
    for reshapes in (False, True):
        network, _ = rf.sample(Views(reshapes), X, factor=1)
        assert network(X).shape == (60, 3)


def test_only_images_are_laid_out_anew():
    assert not runs_channels_last([trace(nn.Sequential(nn.Linear(8, 3), nn.ReLU()))], X[:1, 0, 0])
    assert not runs_channels_last([trace(nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU()))], X[:1, :, 0])
    assert not runs_channels_last([trace(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()))], X[:1].to("meta"))


@torch.no_grad()
@pytest.mark.parametrize("factor", [1, 3])
def test_both_formats_give_the_same_network(factor, monkeypatch):
    got, report = rf.sample(Views(True).double(), X.double(), factor=factor)
    monkeypatch.setattr(prepare, "runs_channels_last", lambda *_: False)
    wanted, other = rf.sample(Views(True).double(), X.double(), factor=factor)
    # Rounding of float64 times the condition number of M.
    torch.testing.assert_close(got(X.double()), wanted(X.double()), rtol=1e-9, atol=1e-9)
    assert report.sites[0].error == pytest.approx(other.sites[0].error, rel=1e-9)


def test_freshly_laid_keeps_the_format():
    maps = X.contiguous(memory_format=torch.channels_last)
    assert is_channels_last(maps) and not is_channels_last(X) and not is_channels_last(X[:, :1])
    for value in (maps, maps[1:], maps[:, :, 1:], X, X[1:], X.transpose(0, 1)):
        laid = freshly_laid(value)
        assert torch.equal(laid, value) and laid.data_ptr() % 64 == 0
        dense = laid.permute(0, 2, 3, 1) if is_channels_last(value) else laid
        assert dense.is_contiguous()


@pytest.mark.parametrize(
    ("width", "size"),
    [
        (100, 2**21 // 100),  # by the numbers of a chunk
        (2048, 4 * 2048),  # by the rows of the weights
        (2**14, 2**24 // 2**14),  # by the most numbers of a chunk
        (2**24, 1),
    ],
)
def test_a_chunk_is_worth_a_pass_over_the_weights(width: int, size: int) -> None:
    net, x = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1)), torch.zeros(1, 1)
    assert chunk_size(site_shapes(trace(net, x), x), x) == size


def test_a_chunk_of_maps_counts_their_positions() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AvgPool2d(32), nn.Conv2d(2, 1024, 1), nn.ReLU())
    x = torch.zeros(1, 1, 64, 64)  # 1,024 channels of 4 positions
    assert chunk_size(site_shapes(trace(net, x), x), x) == 1024
