# SPDX-License-Identifier: BSD-3-Clause
"""Several references of one architecture: they are rotated onto their mean and sampled as one."""

from dataclasses import replace

import pytest
import torch
from parameters import slow_but_for
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.data import digits
from rainbow_fast.networks import mlp, train
from rainbow_fast.rainbow.alignment.procrustes import rotations
from rainbow_fast.rainbow.fitting import fit_moments, fit_rotations
from rainbow_fast.rainbow.prepare import prepare, site_shapes
from rainbow_fast.tracing.joined import JoinedNetwork, Stage, join

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")


def images(N: int = 300) -> Tensor:
    return torch.randn(N, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def chain(seed: int) -> nn.Sequential:
    """Three sites in float64: a fused one, a pooled and normalised one that feeds a Flatten, and one of rows."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.GELU()),
        nn.Conv2d(5, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 9, 7),
        nn.Tanh(),
        nn.Linear(7, 3),
    )
    net = net.double().eval()
    before = net[:4](images()[:270])  # the alignment set of `fit`: a sample of all neurons has the same norms
    net[4].running_mean.copy_(before.mean((0, 2, 3)))
    net[4].running_var.copy_(before.var((0, 2, 3), correction=0))
    return net


@torch.no_grad()
def permuted(network: nn.Sequential, seed: int) -> tuple[nn.Sequential, list[Tensor]]:
    """The same function with permuted neurons, and the permutations: ``phi_permuted[:, i] = phi[:, order[i]]``."""
    copy = chain(0)
    copy.load_state_dict(network.state_dict())
    generator = torch.Generator().manual_seed(seed)
    layers = [[copy[0][0]], [copy[1], copy[4]], [copy[6]], [copy[8]]]
    orders = [torch.randperm(layer[0].weight.shape[0], generator=generator) for layer in layers[:-1]]
    for parts, order in zip(layers[:-1], orders, strict=True):
        for value in [v for part in parts for v in part.state_dict().values() if v.dim()]:
            value.copy_(value[order].clone())
    for (following, *_), order in zip(layers[1:], orders, strict=True):
        weight = following.weight
        grouped = weight.view(len(weight), len(order), -1)
        weight.copy_(grouped[:, order].reshape(weight.shape))
    return copy, orders


def back(model: rf.RainbowModel, place: int) -> list[Tensor]:
    """A_k^T, by which network k reads the output of the site."""
    stage = model.prepared.trace.segments[place + 1]
    assert isinstance(stage, Stage)
    return [layer.weight.flatten(1) for layer in stage.back]


def procrustes(phi: list[Tensor], iterations: int) -> list[Tensor]:
    """As published: each iteration forms the mean from the data and takes a full SVD of each cross-covariance."""
    mean = phi[0]
    for _ in range(iterations):
        A = []
        for each in phi:
            U, _, Vh = torch.linalg.svd(mean.T @ each / len(each))
            A.append(U @ Vh)
        mean = sum(each @ rotation.T for each, rotation in zip(phi, A, strict=True)) / len(phi)
    return A


@torch.no_grad()
def test_a_list_of_one_is_the_network_itself():
    x, network = images(), chain(1)
    sampled = [rf.fit(references, x).sample(factor=3)[0](x) for references in (network, [network])]
    assert torch.equal(*sampled)


@pytest.mark.parametrize("method", ["paper", "calibrated"])
@torch.no_grad()
def test_one_network_joined_is_that_network_to_rounding(method):
    """Joining one network rotates by identities, because the moments have full rank."""
    x = images()
    alone = rf.fit(chain(1), x)
    single = prepare(chain(1), x, rf.FitOptions(), rf.DataLimits())
    joined = join([single.trace], x[:1])
    prepared = replace(single, trace=joined, sites=site_shapes(joined, x[:1]))
    fit_rotations(prepared, iterations=2, progress=None)
    fit_moments(prepared, None)
    network, report = rf.RainbowModel(prepared).sample(factor=3, method=method)
    wanted, wanted_report = alone.sample(factor=3, method=method)
    assert isinstance(network.body, JoinedNetwork)
    torch.testing.assert_close(network(x), wanted(x), rtol=1e-9, atol=1e-9)  # float64, conditions of M below 1e4
    # 1e-8: the rounding of outputs, divided by the error of sampling, which is smaller than the outputs
    assert [s.held_out_error for s in report.sites] == pytest.approx(
        [s.held_out_error for s in wanted_report.sites], rel=1e-8
    )


@pytest.mark.parametrize("method", ["paper", "calibrated"])
@torch.no_grad()
def test_permuted_copies_are_turned_back_and_sampled_as_one(method):
    """The law that draws the references' own neurons gives the function of the references."""
    x, network = images(), chain(1)
    copies = [permuted(network, seed) for seed in (2, 3)]
    torch.testing.assert_close(copies[0][0](x), network(x))
    model = rf.fit([network, *(copy for copy, _ in copies)], x[:-30], holdout=x[-30:])
    for place, d in enumerate((5, 6, 7)):
        eye = torch.eye(d, dtype=torch.float64)
        for rotation, wanted in zip(
            back(model, place), [eye, *(eye[orders[place]] for _, orders in copies)], strict=True
        ):
            torch.testing.assert_close(rotation, wanted, rtol=0, atol=1e-9)  # as above
    sampled, report = model.sample(law="identity", factor=3, method=method)
    # These errors through three sites and their scales; relative errors are of their squares.
    torch.testing.assert_close(sampled(x), network(x), rtol=1e-7, atol=1e-8)
    assert [(s.d, s.n, s.rank) for s in report.sites] == [(5, 15, 15), (6, 18, 18), (7, 21, 21)]
    assert max(s.held_out_error for s in report.sites) < 1e-14


@torch.no_grad()
def test_rotations_are_those_of_the_published_loop():
    """The mean follows from second moments alone, for any number of iterations."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(500, 6, dtype=torch.float64, generator=generator)
    phi = [
        (common + 0.5 * torch.randn(500, 6, dtype=torch.float64, generator=generator))
        @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator)).Q
        for _ in range(4)
    ]
    stacked = torch.cat(phi, 1)
    for iterations in (1, 2, 5):
        Q = rotations(stacked.T @ stacked / 500, 4, iterations, "a")
        # 1e-10: float64, from second moments, which square the condition numbers of the samples
        torch.testing.assert_close(Q, torch.stack(procrustes(phi, iterations)), rtol=0, atol=1e-10)


@torch.no_grad()
def test_is_the_network_of_equation_17_written_out():
    """Rows of W' combine all W_k A_k^T. Their covariance is the mean of the rotated ones, and outputs are a mean."""
    K, x = 3, images().flatten(1)
    networks = [mlp((64, 9, 8, 4), bias=False, seed=seed).double() for seed in range(K)]
    model = rf.fit(networks, x, holdout=0)
    torch.testing.assert_close(model.reference(x), sum(network(x) for network in networks) / K)
    sampled, _ = model.sample(width=6000)
    weights = [[layer.weight for layer in network if isinstance(layer, nn.Linear)] for network in networks]
    outputs = x
    A = [torch.eye(64, dtype=torch.float64)] * K
    for place, name in enumerate(sampled.sampled):
        site = sampled.site(name)
        W = torch.cat([w[place] @ rotation.T for w, rotation in zip(weights, A, strict=True)])
        wide = site.effective_rows() @ W
        wanted = sum(r @ w[place].T @ w[place] @ r.T for w, r in zip(weights, A, strict=True)) / len(W)
        # of n Gaussian rows of covariance C: E|C' - C|_F^2 = (tr(C)^2 + |C|_F^2) / n
        error = (
            (wide.T @ wide / 6000 - wanted).norm() / ((wanted.trace() ** 2 + wanted.norm() ** 2) / 6000).sqrt()
        ).item()
        assert 0.5 < error < 1.5
        outputs = site.scale * (outputs @ wide.T).relu() @ site.A.T
        own = []
        for w in weights:
            phi = x
            for layer in w[: place + 1]:
                phi = (phi @ layer.T).relu()
            own.append(phi)
        A = procrustes(own, 2)
    outputs = sum(outputs @ rotation @ w[-1].T for w, rotation in zip(weights, A, strict=True)) / K
    # 1e-7: float64 through the rotations and alignments of two sites, each with the condition number of its moments
    torch.testing.assert_close(sampled(x), outputs, rtol=1e-7, atol=1e-9)


OPTIONS = {
    "all": {"factor": 3, "method": "calibrated"},
    "a site between": {"sites": ["2"], "accuracy_profile": True},
    "around a kept one": {"sites": ["0.1", "7"]},
    "rank": {"rank": 4, "method": "regression"},
    "refit": {"classifier": "refit", "factor": 2},
    "refit behind a kept one": {"sites": ["0.1"], "classifier": "refit_aligned"},
}


@pytest.mark.parametrize("options", slow_but_for(["a site between", "rank"], OPTIONS))
@torch.no_grad()
def test_the_network_is_what_was_measured_wherever_activations_wait(options, tmp_path):
    x = images(200)
    networks = [chain(seed) for seed in (1, 2)]
    y = (sum(network(x) for network in networks) + 0.3 * torch.randn(200, 3)).argmax(1)
    model = rf.fit(networks, (x[:180], y[:180]), holdout=(x[180:], y[180:]))
    network, report = model.sample(**options)
    outputs = network(x)
    for data, name in ((slice(0, 180), "alignment"), (slice(180, 200), "held_out")):
        assert report.accuracy[name] == (outputs[data].argmax(1) == y[data]).double().mean()
        assert report.accuracy[f"reference_{name}"] == (model.reference(x[data]).argmax(1) == y[data]).double().mean()
    torch.testing.assert_close(network.materialize()(x), outputs)
    assert report.references == 2 and "2 references, aligned to their mean" in str(report)
    for where in ({"storage": "recompute"}, {"resume_dir": tmp_path / "run"}, {"resume_dir": tmp_path / "run"}):
        assert torch.equal(model.sample(**options, **where)[0](x), outputs)
    planned = rf.plan(networks, (x[:1], y[:1]), images=222, **options)
    assert [(s.d, s.n) for s in planned.sites] == [(s.d, s.n) for s in report.sites]


@torch.no_grad()
def test_a_refit_classifier_takes_all_positions_and_outputs_are_not_rotated():
    """The last site contains the classifier; all later layers are left out. A last ReLU is the mean of the outputs."""
    x = images(200)
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double())
    y = sum(network(x) for network in networks).argmax(1)
    network, report = rf.fit(networks, (x[:180], y[:180]), holdout=0).sample(factor=2, classifier="refit")
    assert network.site("1").flattened and network(x).shape == (200, 3)
    assert report.accuracy["alignment"] == (network(x)[:180].argmax(1) == y[:180]).double().mean()
    model = rf.fit([nn.Sequential(*network, nn.ReLU()) for network in networks], x)
    for rotation in back(model, 1):
        torch.testing.assert_close(rotation, torch.eye(3, dtype=torch.float64), rtol=0, atol=0)
    assert model.sample()[1].kept == {"4": "an output activation, not named"}


@torch.no_grad()
def test_samples_of_several_come_closer_to_other_trained_networks():
    """Closer to the mean held-out kernel of two more trainings: what is particular to one training is averaged out."""
    pytest.importorskip("sklearn")
    images = digits()
    x, y, held = images.x_train.flatten(1), images.y_train, images.x_test.flatten(1)
    with torch.enable_grad():
        networks = [train(mlp((64, 128, 64, 10), seed=s), x, y, epochs=10, lr=0.05, seed=s) for s in range(5)]

    def kernel(phi: Tensor) -> Tensor:
        return phi @ phi.T / (phi @ phi.T).norm()

    def error(references: list[nn.Module]) -> float:
        network = rf.fit(references, x, holdout=0).sample(factor=4, method="calibrated")[0]
        phi: list[Tensor] = []
        network.site("4").register_forward_hook(lambda module, inputs, result: phi.append(result))
        network(held)
        return float((kernel(phi[0]) - target).norm())

    target = sum(kernel(network[:-1](held)) for network in networks[3:]) / 2
    assert error(networks[:3]) < sum(error([network]) for network in networks[:3]) / 3


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(x + self.second(x).relu())


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x if x.sum() > 0 else -x)))


def sloped(slope: float) -> nn.Sequential:
    return mlp((4, 3, 2), activation=lambda: nn.PReLU(init=slope))


WRONG = {
    "nothing": ([], ValueError, "reference: got an empty list, wanted at least one nn.Module"),
    "no module": ([mlp((4, 3, 2)), 3], TypeError, "reference: wanted an nn.Module, got int"),
    "skip": (
        [Skip(), Skip()],
        ValueError,
        "number 1 is not a chain: later layers read 1 more values than phi after its site 'relu_1'",
    ),
    "no graph": ([mlp((4, 3, 2)), Branch()], ValueError, "torch.fx cannot trace number 2, which is needed for"),
    "width": (
        [mlp((4, 3, 2)), mlp((4, 5, 2))],
        ValueError,
        r"number 2 has site '2' of ReLU\(\), shape \(5,\); the first",
    ),
    "depth": (
        [mlp((4, 3, 2)), mlp((4, 3, 3, 2))],
        ValueError,
        r"number 2 has site '4' .*; the first has outputs, shape \(2",
    ),
    "kind": (
        [mlp((4, 3, 2)), mlp((4, 3, 2), activation=nn.Tanh)],
        ValueError,
        r"number 2 has site '2' of Tanh\(\), sha",
    ),
    "slope": ([sloped(0.1), sloped(0.2)], ValueError, r"number 2 has site '2' of PReLU\(num_parameters=1\) \+ \[0.2"),
    "dtype": (
        [mlp((4, 3, 2)), mlp((4, 3, 2)).double()],
        TypeError,
        "number 2 is torch.float64 on cpu, the first torch.fl",
    ),
}


@pytest.mark.parametrize("networks, kind, message", WRONG.values(), ids=WRONG)
def test_refuses_what_cannot_be_joined(networks, kind, message):
    with pytest.raises(kind, match=message):
        rf.fit(networks, torch.randn(20, 4))


def test_refuses_what_several_references_do_not_have(tmp_path):
    x, networks = images(100), [chain(1), chain(2)]
    refused = ((0, ValueError, "procrustes_iterations >= 1"), (True, TypeError, "an integer, got bool"))
    for iterations, error, wanted in refused:
        with pytest.raises(error, match=f"procrustes_iterations={iterations}: wanted {wanted}"):
            rf.fit(networks, x, procrustes_iterations=iterations)
    model = rf.fit(networks, x)
    with pytest.raises(ValueError, match="align_flattened=True: wanted one reference, got 2"):
        model.sample(align_flattened=True)
    with pytest.raises(ValueError, match="model: fitted to 2 references, wanted one"):
        rf.save_model(model, tmp_path / "model")
    for call in (lambda: rf.sites(networks, x), lambda: rf.load(tmp_path / "network", networks)):
        with pytest.raises(TypeError, match="reference: wanted an nn.Module, got list"):
            call()
    with pytest.raises(ValueError, match="network: sampled from several references, wanted one"):
        rf.save(model.sample()[0], tmp_path / "network")
    with torch.no_grad():
        networks[1][1].weight.zero_()
        networks[1][1].bias.fill_(-1)
        networks[1][4].running_mean.zero_()
    with pytest.raises(ValueError, match="site '2': the activations of reference 2 do not correlate with the mean"):
        rf.fit(networks, x)
