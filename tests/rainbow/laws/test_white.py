# SPDX-License-Identifier: BSD-3-Clause
"""White rows: layers with the covariance of an untrained network, compared with a wide network written by hand."""

import math

import pytest
import torch
from stopping import Stop, stop_at
from torch import nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")


def test_white_rows_as_a_wide_network() -> None:
    net = mlp((9, 7, 5, 3), seed=1).double()
    x = torch.randn(700, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_test = torch.randn(600, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y_test = net(x_test).argmax(1)
    network, report = rf.sample(net, x, holdout=(x_test, y_test), law="white", factor=4, seed=3, network_index=2)
    phi, phi_test, wide, wide_test, A = x, x_test, x, x_test, torch.eye(9, dtype=torch.float64)
    for index, layer in enumerate((1, 3)):
        W = net[layer].weight.detach()
        G = rf.gaussian(4 * len(W), W.shape[1], seed=3, stream=2 << 12 | index, dtype=torch.float64)
        wide_W = (W.T @ W / len(W)).trace().div(W.shape[1]).sqrt() * G @ A
        phi, phi_test, wide, wide_test = (torch.relu(t @ w.T) for t, w in
            ((phi, W), (phi_test, W), (wide, wide_W), (wide_test, wide_W)))  # fmt: skip
        U, _, Vh = torch.linalg.svd(phi.T @ wide, full_matrices=False)
        A = U @ Vh * math.sqrt(len(W) / len(wide_W))
        error = (wide_test @ A.T - phi_test).square().sum() / phi_test.square().sum()
        assert report.sites[index].held_out_error == pytest.approx(float(error), rel=1e-8)  # float64, condition of M
        assert (report.sites[index].d, report.sites[index].n) == (len(W), 4 * len(W))
    logits = wide_test @ A.T @ net[5].weight.T
    torch.testing.assert_close(network(x_test), logits, rtol=1e-7, atol=1e-7)  # float64, times the condition of M
    assert network.own_layers == {"2": "1", "4": "3"}


CONVOLUTION = cnn((1, 4, 5), kernel_size=3, image_size=8, seed=0)
MAPS = torch.randn(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(90) % 10


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 4}, {"classifier": "refit"}, {"sites": ["3"]}, {"storage": "recompute"}, {"alignment": "regression"}],
    ids=str,
)
def test_a_convolution_is_saved_loaded_and_written_out(options: dict, tmp_path) -> None:
    network, report = rf.sample(CONVOLUTION, (MAPS, LABELS), law="white", factor=3, **options)
    torch.testing.assert_close(network.materialize()(MAPS), network(MAPS), rtol=1e-4, atol=1e-5)  # float32, two layers
    rf.save(network, tmp_path / "it")
    loaded = rf.load(tmp_path / "it", CONVOLUTION)
    assert torch.equal(loaded(MAPS), network(MAPS)) and loaded.own_layers == network.own_layers
    assert all(0 < site.error < 1 or options.get("alignment") for site in report.sites)
    again, _ = rf.sample(CONVOLUTION, (MAPS, LABELS), law="white", factor=3, **options)
    assert torch.equal(again(MAPS), network(MAPS))


def test_white_and_trained_rows_in_one_pass() -> None:
    model = rf.fit(CONVOLUTION, MAPS)
    each = [{"law": "white", "factor": 2}, {"factor": 2}, {"law": "white", "factor": 3, "sites": ["1"]}]
    for (network, _), options in zip(model.sample_many(each), each, strict=True):
        assert torch.equal(network(MAPS), model.sample(**options)[0](MAPS))
    trained, white = (model.sample(law=law, factor=8)[1].sites[-1].error for law in ("gaussian", "white"))
    assert trained < 2 * white, "of an untrained reference its own covariance is nearly white"


def test_a_stopped_run_of_white_rows_goes_on(tmp_path) -> None:
    options = {"law": "white", "factor": 2, "resume_dir": tmp_path / "run"}
    with pytest.raises(Stop):
        rf.sample(CONVOLUTION, MAPS, progress=stop_at(4), **options)  # after the first site
    network, _ = rf.sample(CONVOLUTION, MAPS, **options)
    assert torch.equal(network(MAPS), rf.fit(CONVOLUTION, MAPS).sample(law="white", factor=2)[0](MAPS))


def test_where_there_are_no_white_rows() -> None:
    x = torch.randn(40, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    for net, data, message in (
        (mlp((9, 7, 3), bias=True), torch.randn(40, 9), "law='white': site '2' is not written by one bias-free"),
        (grouped, x, "law='white': site '1': groups=2, wanted rows that read all channels"),
    ):
        with pytest.raises(ValueError, match=message):
            rf.sample(net, data, law="white")
    with pytest.raises(ValueError, match="recalibrate=True with law='white': z is another one than the reference's"):
        rf.sample(CONVOLUTION, MAPS, law="white", recalibrate=True)


def test_white_rows_are_planned(tmp_path) -> None:
    machine = rf.Machine(*[1e9] * 7)
    white, trained = (rf.plan(CONVOLUTION, MAPS, law=law, factor=2, machine=machine) for law in ("white", "gaussian"))
    assert [site.rank for site in white.sites] == [9, 36] and [site.rank for site in trained.sites] == [4, 5]
    assert white.flops > trained.flops
    rf.save(rf.sample(CONVOLUTION, MAPS, law="white", factor=2)[0], tmp_path / "it")
    raw = (tmp_path / "it").read_bytes()
    assert white.disk_bytes == len(raw) - 8 - int.from_bytes(raw[:8], "little")
