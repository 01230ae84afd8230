# SPDX-License-Identifier: BSD-3-Clause
"""compare: two networks aligned site by site, where the answer is known."""

import copy
import json
import math

import architectures
import pytest
import torch
from here import draw
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp


class Doubled(nn.Module):
    """A pointwise map that commutes with every rotation, which no non-linearity does."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def perceptron(*, seed: int, widths: tuple[int, int] = (6, 5)) -> nn.Sequential:
    d, e = widths
    net = nn.Sequential(nn.Linear(8, d), Doubled(), nn.Linear(d, e), nn.ReLU(), nn.Linear(e, 3)).double()
    with torch.no_grad():
        for number, p in enumerate(net.parameters()):
            p.copy_(draw(*p.shape, dtype=torch.float64, seed=10 * seed + number))
    return net


def rotated(net: nn.Sequential) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network, and the same function with its first site rotated and its second site permuted."""
    Q = torch.linalg.qr(draw(6, 6, dtype=torch.float64, seed=1)).Q
    P = torch.eye(5, dtype=torch.float64)[[2, 0, 4, 1, 3]]
    turned = copy.deepcopy(net)
    with torch.no_grad():
        turned[0].weight.copy_(Q @ net[0].weight)
        turned[0].bias.copy_(Q @ net[0].bias)
        turned[2].weight.copy_(P @ net[2].weight @ Q.T)
        turned[2].bias.copy_(P @ net[2].bias)
        turned[4].weight.copy_(net[4].weight @ P.T)
    return turned, Q, P


X = draw(300, 8, dtype=torch.float64, seed=3)


def test_a_planted_rotation_is_found():
    a = perceptron(seed=1)
    b, Q, P = rotated(a)
    comparison = rf.compare(a, b, X, holdout=0.2, pointwise_modules=[Doubled])
    assert (comparison.samples, comparison.held_out_samples) == (240, 60)
    for site, A, turned in zip(comparison.sites, comparison.alignments, (Q, P), strict=True):
        # Rounding of float64 times the condition number of M; errors are squares of it.
        assert site.similarity == pytest.approx(1, abs=1e-12)
        assert max(site.error, site.error_centred, site.held_out_error, site.held_out_error_centred) < 1e-24
        torch.testing.assert_close(A, turned.T, rtol=0, atol=1e-11)


def test_numbers_are_those_of_the_definitions():
    """Another network with other widths, compared by SVDs of all activations at once."""
    a, b = perceptron(seed=1), perceptron(seed=2, widths=(9, 4))
    comparison = rf.compare(a, b, X[:200], holdout=X[200:], pointwise_modules=[Doubled])
    x, y = X, X
    for place, site in zip((2, 4), comparison.sites, strict=True):
        x, y = (net[place - 2 : place](t).detach() for net, t in ((a, x), (b, y)))
        U, S, Vh = torch.linalg.svd(x[:200].T @ y[:200] / 200, full_matrices=False)
        sizes = [t[:200].square().sum(1).mean().sqrt() for t in (x, y)]
        # 1e-10, 1e-9: sums of float64 and their SVDs. The remaining error is a difference, and so a little less exact.
        assert site.similarity == pytest.approx(float(S.sum() / sizes[0] / sizes[1]), rel=1e-10)
        assert 0.05 < site.similarity < 0.95
        assert site.M_effective_rank == pytest.approx(float(S.sum() ** 2 / S.square().sum()), rel=1e-10)
        assert site.M_condition == pytest.approx(float(S[0] / S[-1]), rel=0.01)  # what `polar` promises
        remains = math.sqrt(x.shape[1] / y.shape[1]) * y @ (U @ Vh).T - x
        for part, error, centred in (
            (slice(200), site.error, site.error_centred),
            (slice(200, 300), site.held_out_error, site.held_out_error_centred),
        ):
            power, spread = (x[part] - c for c in (0, x[part].mean(0)))
            assert error == pytest.approx(float(remains[part].square().sum() / power.square().sum()), rel=1e-9)
            assert centred == pytest.approx(float(remains[part].square().sum() / spread.square().sum()), rel=1e-9)
        assert (site.d, site.n, site.samples) == (x.shape[1], y.shape[1], 200)


@pytest.mark.parametrize("kind", [architectures.Residual, architectures.UNet, architectures.Mixer])
def test_a_network_is_itself_and_no_other(kind):
    """Maps, pooling, tokens, skips. A second network with random weights is less similar at every site."""
    net, other = (architectures.build(kind, seed=seed) for seed in (0, 1))
    x = draw(60, *net.image)
    itself, second = rf.compare(net, net, x), rf.compare(net, other, x)
    assert [site.site for site in itself.sites] == [site.name for site in rf.sites(net)]
    for same, unlike in zip(itself.sites, second.sites, strict=True):
        assert same.similarity == pytest.approx(1, abs=1e-6) and same.held_out_error < 1e-9  # float32 activations
        assert unlike.similarity < 0.99 and unlike.error > 0.01


def test_storage_changes_nothing_and_progress_is_told(tmp_path):
    a, b = (cnn((1, 6, 5), image_size=14, kernel_size=3, seed=seed) for seed in (0, 1))
    x, told = draw(50, 1, 14, 14), []
    plain = rf.compare(a, b, x, progress=lambda *arguments: told.append(arguments))
    assert [done for done, _, _ in told] == list(range(1, told[-1][1] + 1))
    for storage in ("file", "recompute"):
        assert rf.compare(a, b, x, storage=storage, scratch_dir=tmp_path).to_dict() == plain.to_dict()
    assert "in files" in rf.compare(a, b, x, memory_budget=0, scratch_dir=tmp_path).storage
    assert not list(tmp_path.iterdir())
    few = rf.compare(a, b, x, max_samples=1000).sites[0]
    assert few.samples == 45 * 36 // 5  # 3 would be enough, but has a common factor with 36
    assert few.similarity == pytest.approx(plain.sites[0].similarity, rel=0.1)  # 324 of 1620 samples
    assert json.loads(plain.to_json())["sites"][0]["similarity"] == plain.sites[0].similarity
    lines = str(plain).splitlines()
    assert len(lines) == 5 and lines[2].split()[:3] == ["site", "other", "d"]


def test_half_precision_is_compared_in_float32():
    net = mlp((8, 12, 10, 3), seed=0)
    comparison = rf.compare(net, copy.deepcopy(net).bfloat16(), X.float())
    # Weights are rounded to 2^-9 of themselves. Errors are its square, 4e-6, times the layers and their gains.
    assert all(0.999 < site.similarity < 1 and site.error < 1e-3 for site in comparison.sites)


@pytest.mark.parametrize(
    "other, data, message",
    [
        (nn.Linear(8, 3), X.float(), "b: no site, wanted at least one pointwise non-linearity"),
        (mlp((8, 4, 3)), X.float(), "b: it has 1 sites, wanted 2 as a has"),
        ([mlp((8, 4, 4, 3))], X.float(), "b: wanted an nn.Module, got list"),
        (mlp((8, 4, 4, 3)), X.float()[:0], r"data: wanted x of shape \(N, ...\) with N >= 1"),
    ],
)
def test_what_cannot_be_compared_is_named(other, data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        rf.compare(mlp((8, 4, 4, 3)), other, data)


def test_a_folder_to_resume_from_is_refused(tmp_path):
    net = mlp((8, 4, 4, 3))
    with pytest.raises(ValueError, match="resume_dir='.*run': compare cannot be resumed, wanted None"):
        rf.compare(net, net, X.float(), resume_dir=str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_other_positions_are_named():
    a, b = (cnn((1, 3, 4), image_size=14, kernel_size=3, stride=stride, seed=0) for stride in (1, 2))
    with pytest.raises(ValueError, match=r"b: site '1' has 36 positions, wanted 144 as site '1' of a has"):
        rf.compare(a, b, draw(40, 1, 14, 14))
