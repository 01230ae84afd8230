# SPDX-License-Identifier: BSD-3-Clause
"""The meaning of samples and labels of any dtype: uint8 are pixels everywhere; labels are classes or are refused."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rainbow_fast as rf
from rainbow_fast.data import npy_pair
from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.networks import mlp

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(80) % 4
PIXELS = torch.randint(0, 256, (60, 2, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def classifier() -> nn.Module:
    return mlp((6, 8, 5, 4), seed=0)


def convolution(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 4)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_uint8_are_pixels_wherever_they_come_from(tmp_path, dtype):
    """The same bits as of the floats they stand for: from a tensor, a pair, a loader, files, and a mapped file; to
    align on, and held out."""
    np.save(tmp_path / "x.npy", PIXELS.numpy())
    mapped = torch.from_file(str(tmp_path / "raw"), shared=True, size=PIXELS.numel(), dtype=torch.uint8)
    mapped.copy_(PIXELS.flatten())
    y = torch.arange(60) % 4
    loader = DataLoader(TensorDataset(PIXELS, y), batch_size=13)
    sources = [PIXELS, (PIXELS, y), loader, npy_pair(tmp_path / "x.npy"), mapped.view(PIXELS.shape)]
    net, floats = convolution(dtype), PIXELS.float() / 255
    wanted, report = rf.sample(net, floats, factor=2, holdout=floats.flip(0), memory_budget=1000, batch_size=7)
    for data in sources:
        network, own_report = rf.sample(net, data, factor=2, holdout=PIXELS.flip(0), memory_budget=1000, batch_size=7)
        assert torch.equal(network.site("1").A, wanted.site("1").A)
        assert own_report.sites[0].held_out_error == report.sites[0].held_out_error
    assert rf.sites(net, PIXELS)[0].z_shape == (5, 4, 4)
    assert abs(rf.compare(net, net, PIXELS).sites[0].similarity - rf.compare(net, net, floats).sites[0].similarity) == 0


def test_pixels_are_planned_with():
    assert rf.plan(convolution(), PIXELS, factor=2).flops == rf.plan(convolution(), PIXELS / 255, factor=2).flops


def test_models_of_pixels_are_kept_as_pixels(tmp_path):
    model = rf.fit(convolution(), PIXELS)
    rf.save_model(model, tmp_path / "model")
    again = rf.load_model(tmp_path / "model", convolution())
    assert again.prepared.align.x.dtype == torch.uint8
    x = PIXELS.float() / 255
    assert torch.equal(again.sample(factor=2)[0](x), model.sample(factor=2)[0](x))


def test_pixels_are_divided_in_float32():
    """Other integers, and booleans, are plain numbers."""
    values = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64, torch.float16):
        numbers = as_numbers(values, "cpu", dtype)
        assert numbers.dtype == dtype and torch.equal(numbers, (values.float() / 255).to(dtype))
    assert values[3] == 3, "in place nowhere"
    for dtype in (torch.int8, torch.int16, torch.int64, torch.bool):
        assert torch.equal(as_numbers(torch.ones(3, dtype=dtype), "cpu", torch.float32), torch.ones(3))
    assert as_numbers(X, "cpu", torch.float32) is X


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16], ids=str
)
def test_labels_of_any_integers(dtype):
    net, y = classifier(), Y.to(dtype)
    accuracy = rf.sample(net, (X, Y))[1].accuracy
    assert set(accuracy) == {"alignment", "held_out", "reference_alignment", "reference_held_out"}
    for data in ((X, y), DataLoader(TensorDataset(X, y), batch_size=17)):
        assert rf.sample(net, data)[1].accuracy == accuracy
    refit = [rf.sample(net, (X, each), classifier="refit", holdout=(X, each))[1].accuracy for each in (Y, y)]
    assert refit[0] == refit[1]


NO_CLASSES = {
    "float": (
        Y.float(),
        TypeError,
        r"labels y are float32 of shape \(80,\), wanted integers, the class of each sample",
    ),
    "bool": (Y > 1, TypeError, r"labels y are bool \(N\), and the network gives outputs \(N, 4\): wanted"),
    "complex": (Y + 0j, TypeError, r"labels y are complex64 of shape \(80,\)"),
    "a column": (Y.unsqueeze(1), ValueError, r"labels y are int64 \(N, 1\)"),
    "one-hot": (F.one_hot(Y, 4), ValueError, r"labels y are int64 \(N, 4\)"),
    "one-hot floats": (F.one_hot(Y, 4).float(), TypeError, r"labels y are float32 \(N, 4\)"),
    "not only zeros and ones": (
        0.5 * (Y > 1),
        TypeError,
        r"labels y are float32 of shape \(80,\), wanted integers, the",
    ),
    "of each pixel": (Y.view(80, 1, 1).expand(80, 6, 6), ValueError, r"labels y are int64 \(N, 6, 6\)"),
    "too large": (Y * 10**9, ValueError, "label 1000000000 of sample 1, wanted 0 to 3, because the network has 4"),
    "beyond int64": (
        torch.full((80,), -1).view(torch.uint64),
        ValueError,
        r"label 18446744073709551615 of sample 0, wanted at most 2\^63 - 1",
    ),
    "negative": (Y - 1, ValueError, "label -1 of sample 0, wanted 0 to 3, because the network has 4"),
    "ignored": (torch.where(Y == 2, -100, Y), ValueError, "label -100 of sample 2, wanted 0 to 3"),
}


@pytest.mark.parametrize("y, error, message", NO_CLASSES.values(), ids=NO_CLASSES)
def test_what_is_no_class_is_refused(y, error, message):
    """The error names the argument and what to do: in a pair, in a loader, and in every function that takes labels."""
    net, end = classifier(), ".*; pass x without y if y is not"
    for data in ((X, y), DataLoader(TensorDataset(X, y), batch_size=80)):
        for call in (rf.fit, rf.sample, rf.plan):
            with pytest.raises(error, match=f"^data: {message}{end}"):
                call(net, data)
        with pytest.raises(error, match=f"^holdout: {message}{end}"):
            rf.fit(net, (X, Y), holdout=data)
    rf.fit(net, X)
    assert rf.sites(net, (X, y)) == rf.sites(net, X)
    if error is TypeError or y.dim() > 1:
        rf.compare(net, net, (X, y))  # it reads no labels


def test_they_are_refused_before_anything_is_computed():
    class Never(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("was called")

    with pytest.raises(TypeError, match="^data: labels y are float32"):
        rf.fit(Never(), (X, Y.float()))


def test_complex_samples_are_refused():
    for call in (rf.fit, rf.sample, rf.plan, rf.sites):
        with pytest.raises(TypeError, match=r"^data: wanted x of real numbers, got complex64 \(80, 6\)"):
            call(classifier(), (X + 0j, Y))
    with pytest.raises(TypeError, match=r"^holdout: wanted x of real numbers, got complex64 \(80, 6\)"):
        rf.fit(classifier(), X, holdout=X + 0j)
    with pytest.raises(TypeError, match=r"^data: batch 0: wanted x of real numbers, got complex64 \(80, 6\)"):
        rf.fit(classifier(), [X + 0j])
