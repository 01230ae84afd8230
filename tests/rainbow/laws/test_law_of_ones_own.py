# SPDX-License-Identifier: BSD-3-Clause
"""Laws and alignments that the package does not know are sampled, ranked, written out, saved, resumed and planned like
its own."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from here import fresh_python
from stopping import Stop, stop_at
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(120) % 2
MAPS = torch.randn(80, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Signs(rf.Law):
    """Rows of random signs, which have the same covariance as Gaussian rows."""

    def draw(self, n: int, site: object, U: Tensor | None, key: Tensor) -> rf.Rows:
        rows = rf.Rows(n, site.d, key, U)  # type: ignore[attr-defined]
        return rows._replace(matrix=rf.gaussian(n, rows.r, seed=key).sign())


@dataclass(frozen=True)
class Unaligned(rf.Alignment):
    """The first d features as they are, without an alignment."""

    def solve(self, M: Tensor, problem: object) -> Tensor:
        return torch.eye(*M.shape, dtype=M.dtype)


POOLED = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 2))
NETWORKS = {
    "dense": (mlp((6, 8, 5, 2), bias=True, seed=0), X),
    "maps": (cnn((1, 4, 5), kernel_size=3, image_size=8, seed=0), MAPS),
    "pooled": (POOLED, MAPS),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"method": "calibrated"}, {"method": "regression"}], ids=str)
def test_a_law_is_sampled_written_out_saved_and_loaded(kind: str, options: dict, tmp_path: Path) -> None:
    net, x = NETWORKS[kind]
    network, report = rf.sample(net, x, law=Signs(), factor=3, **options)
    site = network.site(network.sampled[0])
    first = rf.fit(net, x).sites[0]
    assert site.matrix is not None and set(site.matrix.unique().tolist()) == {-1.0, 1.0}
    assert site.matrix.shape == (3 * first.channels, min(options.get("rank", first.d), first.d))
    R = site.matrix.double() if site.U is None else site.matrix.double() @ site.U.T
    wanted = R / first.d**0.5
    if site.mean_row:
        wanted = wanted - wanted.mean(1, keepdim=True) + 1 / first.d
    torch.testing.assert_close(site.effective_rows(), wanted)
    torch.testing.assert_close(network.materialize()(x), network(x), rtol=1e-4, atol=1e-5)  # float32, two layers
    assert (
        0 < report.sites[0].error < 1
        and "law=Signs()" in str(report)
        and report.to_dict()["options"]["law"] == "Signs()"
    )
    rf.save(network, tmp_path / "it")
    assert torch.equal(rf.load(tmp_path / "it", net)(x), network(x))
    assert torch.equal(copy.deepcopy(network)(x), network(x))


LOAD = """
import sys, torch
import rainbow_fast as rf
from rainbow_fast.networks import mlp
network = rf.load(sys.argv[1], mlp((6, 8, 5, 2), bias=True, seed=0))
x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
torch.save(network(x), sys.argv[2])
"""


def test_a_file_loads_where_the_law_is_not_known(tmp_path: Path) -> None:
    net, x = NETWORKS["dense"]
    network, _ = rf.sample(net, x, law=Signs(), factor=2)
    rf.save(network, tmp_path / "it")
    fresh_python(LOAD, tmp_path / "it", tmp_path / "y.pt")
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), network(x), rtol=1e-6, atol=1e-6)  # other threads


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    net, x = NETWORKS["dense"]
    options = {"law": Signs(), "factor": 2, "method": "calibrated"}
    with pytest.raises(Stop):
        rf.sample(net, x, resume_dir=tmp_path / "run", progress=stop_at(4), **options)  # after the first site
    network, _ = rf.sample(net, x, resume_dir=tmp_path / "run", **options)
    assert torch.equal(network(x), rf.fit(net, x).sample(**options)[0](x))
    with pytest.raises(ValueError, match=r"holds another run: it differs in law of network 0 \('Signs\(\)' there"):
        rf.sample(net, x, resume_dir=tmp_path / "run", factor=2, method="calibrated")


@dataclass(frozen=True)
class WideSigns(Signs):
    """The limit of random signs, if it is computed as that of Gaussian rows."""

    def limit(self, site: object, U: Tensor | None, key: Tensor) -> rf.Rows:
        return rf.Rows(math.inf, site.d, key, U)  # type: ignore[arg-type, attr-defined]


def test_the_limit_of_a_law(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    net, x = NETWORKS["dense"]
    network, _ = rf.sample(net, x, law=WideSigns(), factor=math.inf)
    assert torch.equal(network(x), rf.sample(net, x, factor=math.inf)[0](x))
    assert rf.plan(net, x, law=WideSigns(), factor=math.inf).sites[0].route == "limit"
    rf.save(network, tmp_path / "it")
    assert torch.equal(rf.load(tmp_path / "it", net)(x), network(x))
    with pytest.raises(ValueError, match=r"law=Signs\(\) has no closed form: wanted .* or a law with `limit`"):
        rf.sample(net, x, law=Signs(), factor=math.inf)


def test_a_law_is_planned_by_what_it_stores(tmp_path: Path) -> None:
    net, x = NETWORKS["dense"]
    machine = rf.Machine(*[1e9] * 7)
    law, gaussian = (rf.plan(net, x, law=law, factor=4, machine=machine) for law in (Signs(), "gaussian"))
    assert law.disk_bytes - gaussian.disk_bytes == 8 * (32 * 8 + 20 * 5), "R in float64, which a law may store smaller"


def test_networks_of_many_laws_in_one_pass() -> None:
    net, x = NETWORKS["dense"]
    model = rf.fit(net, x)
    each = [{"law": Signs()}, {"law": "orthonormal"}, {"alignment": Unaligned()}]
    for (network, _), options in zip(model.sample_many(each), each, strict=True):
        assert torch.equal(network(x), model.sample(**options)[0](x))


def test_an_alignment_of_ones_own() -> None:
    net, x = NETWORKS["dense"]
    errors = {
        name: rf.sample(net, x, alignment=a, factor=4)[1].sites[0].error
        for name, a in (("polar", "polar"), ("none", Unaligned()))
    }
    assert errors["polar"] < errors["none"]
    network, _ = rf.sample(net, x, alignment=Unaligned(), law="identity")
    torch.testing.assert_close(network(x), net(x), rtol=1e-5, atol=1e-5)  # the same neurons in their order, in float32


def test_what_is_no_law() -> None:
    for law in (object(), Signs, 3):
        with pytest.raises(ValueError, match="law=.*: wanted one of gaussian, orthonormal, bootstrap, identity"):
            rf.sample(*NETWORKS["dense"], law=law)
    with pytest.raises(ValueError, match="alignment=.*: wanted one of polar, polar_complete, regression"):
        rf.sample(*NETWORKS["dense"], alignment=Unaligned)
