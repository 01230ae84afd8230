# SPDX-License-Identifier: BSD-3-Clause
"""The precision of a sampling run: read once at its start, the same for all of its products, and recorded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from architectures import Residual, build
from here import BACKENDS, LEVELS
from torch import Tensor, nn

import rainbow_fast as rf

pytestmark = [pytest.mark.filterwarnings("ignore:site .* samples for"), pytest.mark.usefixtures("one_thread")]
UNIT = "cpu" in BACKENDS and any(name == "amx" for name in LEVELS)  # its products differ with the precision
X = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
NETWORKS = [  # the routes wide, kept and fused, features that are pooled, directions, an alignment with a solver
    {"factor": 1},
    {"factor": 2, "method": "calibrated"},
    {"factor": 3, "rank": 3},
    {"factor": 2, "method": "regression"},
]


@pytest.fixture(autouse=True)
def unset() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


def reference() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)
    return nn.Sequential(*layers)


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(X)


@pytest.mark.parametrize("options", NETWORKS, ids=str)
@pytest.mark.parametrize("make", [reference, lambda: build(Residual)], ids=["perceptron", "residual"])
def test_every_precision_gives_nearly_the_same_network(make, options: dict) -> None:
    """Errors of "high" are 2^-14 of sums of magnitudes; the runs compare the network with themselves."""
    model = rf.fit(make(), X, holdout=10)
    full, _ = model.sample(**options)
    for precision, bound in (("high", 1e-2), ("medium", 1.0)):  # small directions of M amplify errors of its sums
        network, report = model.sample(**options, precision=precision)
        assert report.options.precision == precision
        assert {network.site(name).precision for name in network.sampled} == {precision}
        apart = (logits(network) - logits(full)).norm() / logits(full).norm()
        assert (0 < apart < bound) if UNIT else apart == 0


def test_the_setting_of_torch_is_the_default() -> None:
    model = rf.fit(reference(), X, holdout=10)
    full = logits(model.sample(factor=2)[0])
    torch.set_float32_matmul_precision("high")
    network, report = model.sample(factor=2)
    assert report.options.precision == "high" and "precision=high" in str(report)
    again, _ = rf.sample(reference(), X, holdout=10, factor=2)
    for same in (again, model.sample(factor=2, precision="high")[0]):
        assert torch.equal(logits(same), logits(network))
    network, report = model.sample(factor=2, precision="highest")  # layers of the reference are still at "high"
    assert report.options.precision == "highest"
    assert (logits(network) - full).norm() < 1e-3 * full.norm()


def test_it_is_read_once() -> None:
    """Changes while a run goes on have no effect, nor have those before a call of the network."""
    model = rf.fit(reference(), X, holdout=10)
    wanted = logits(model.sample(factor=2)[0])

    def change(done: int, total: int, what: str) -> None:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.backends.fp32_precision = "tf32"

    try:
        network, report = model.sample(factor=2, progress=change)
        assert rf.ops.precision.in_force(torch.device("cpu")) == "high"
        assert report.options.precision == "highest" and torch.equal(logits(network), wanted)
    finally:
        torch.backends.fp32_precision = "none"


def test_files_keep_it(tmp_path: Path) -> None:
    network, _ = rf.sample(reference(), X, holdout=10, factor=2, precision="high")
    rf.save(network, tmp_path / "network")
    loaded = rf.load(tmp_path / "network", reference())
    assert loaded.site("2").precision == "high"
    assert torch.equal(logits(loaded), logits(network))


def test_a_resumed_run_has_the_same_precision(tmp_path: Path) -> None:
    model = rf.fit(reference(), X, holdout=10)
    how = {"factor": 2, "resume_dir": tmp_path / "run"}
    network, _ = model.sample(**how, precision="high")
    again, _ = model.sample(**how, precision="high")
    assert torch.equal(logits(again), logits(network)) and again.site("2").precision == "high"
    with pytest.raises(ValueError, match="it differs in precision of network 0 .'high' there, 'highest' here."):
        model.sample(**how)
    torch.set_float32_matmul_precision("high")  # the layers of the reference have this one
    with pytest.raises(ValueError, match="it differs in precision of torch .'highest' there, 'high' here."):
        model.sample(**how)


def test_networks_of_one_pass_have_their_own() -> None:
    model = rf.fit(reference(), X, holdout=10)
    pair = model.sample_many([{"factor": 2, "precision": precision} for precision in ("high", "highest")])
    for (network, _), precision in zip(pair, ("high", "highest"), strict=True):
        assert torch.equal(logits(network), logits(model.sample(factor=2, precision=precision)[0]))


def test_a_float64_network_has_none() -> None:
    torch.set_float32_matmul_precision("medium")
    _, report = rf.sample(reference().double(), X.double(), holdout=10, factor=2)
    assert report.options.precision == "highest"


def test_what_is_written_out_agrees() -> None:
    network, _ = rf.sample(reference(), X, holdout=10, factor=2, precision="medium")
    module = network.materialize()  # compares the two
    assert (logits(module) - logits(network)).norm() < 0.1 * logits(network).norm()


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match=r"precision='low': wanted one of highest, high, medium"):
        rf.sample(reference(), X, precision="low")
