# SPDX-License-Identifier: BSD-3-Clause
"""The regression by products with S against a direct solve."""

import math

import pytest
import torch
from here import draw
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rainbow_fast as rf
from rainbow_fast.networks import mlp
from rainbow_fast.networks.train import train
from rainbow_fast.rainbow.alignment import Regression
from rainbow_fast.rainbow.alignment.conjugate_gradient import products_about, regress

RIDGE = 1e-3


class Site:
    """The features of u, M, the mean of the diagonal of S, and products with S in two fused passes."""

    def __init__(self, phi: Tensor, u: Tensor, n: int, shift: Tensor | None = None) -> None:
        self.u, self.n, self.options = u, n, {"seed": 1, "shift": shift}
        self.samples = u.numel() // u.shape[1]
        cross, total, square = rf.random_features_covariance(phi, u, n, **self.options)
        self.M, self.mean = cross / self.samples, total / self.samples
        self.mean_diagonal = float(square.mean()) / self.samples
        self.products = 0

    def apply(self, V: Tensor, c: Tensor | None = None) -> Tensor:
        self.products += 1
        y = rf.random_features_projection(self.u, V, **self.options)
        y = y if c is None else y - c.view(-1, *[1] * (y.dim() - 2))
        return rf.random_features_covariance(y, self.u, self.n, **self.options)[0] / self.samples

    def features(self) -> Tensor:
        """(samples, n) float64"""
        phi = rf.random_features(self.u, self.n, **self.options)
        return phi.double().movedim(1, -1).reshape(-1, self.n)


def directly(M: Tensor, S: Tensor, shift: float) -> Tensor:
    return torch.linalg.solve(S + shift * torch.eye(len(S), dtype=S.dtype), M, left=False)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def spread(N: int, r: int, *space: int, dtype: torch.dtype) -> Tensor:
    """Projections whose variances fall like those of natural activations."""
    falling = torch.arange(1, r + 1, dtype=dtype).rsqrt().view(-1, *[1] * len(space))
    return draw(N, r, *space, dtype=dtype) * falling


def synthetic(n: int, dtype: torch.dtype, N: int = 1500, d: int = 6) -> Site:
    u = spread(N, 12, dtype=dtype)
    return Site((u @ draw(12, d, dtype=dtype, seed=2)).relu(), u, n)


@pytest.mark.parametrize("space", [(), (3, 5)], ids=["samples", "maps"])
def test_equals_the_direct_solve_in_float64(space):
    """A itself is compared, for an M with zero, equal and tiny rows and a mean row."""
    u = spread(1200 if not space else 80, 8, *space, dtype=torch.float64)
    phi = u[:, :6].relu().clone()
    phi[:, 1], phi[:, 3] = 0, phi[:, 2]
    phi[:, 4] *= 1e-9
    site = Site(phi, u, 500, shift=u.mean(1))
    A = regress(site.apply, site.M, site.mean_diagonal, RIDGE, tolerance=1e-8, sketch=60, dtype=torch.float64)
    features = site.features()
    wanted = directly(site.M, features.T @ features / len(features), RIDGE * site.mean_diagonal)
    assert error(A, wanted) < 1e-6  # the bound is for predictions; errors of entries may be 1 / RIDGE^1/2 times larger
    for row in (0, 2, 3, 4, 5):
        assert error(features @ A[row], features @ wanted[row]) < 1e-8  # the requested tolerance
    assert not A[1].any()


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3])
def test_predictions_are_as_certain_as_asked(tolerance):
    """A larger tolerance takes fewer products."""
    site = synthetic(800, torch.float64)
    A = regress(site.apply, site.M, site.mean_diagonal, RIDGE, tolerance=tolerance, sketch=256, dtype=torch.float64)
    features = site.features()
    wanted = directly(site.M, features.T @ features / len(features), RIDGE * site.mean_diagonal)
    errors = (features @ (A - wanted).T).norm(dim=0) / (features @ wanted.T).norm(dim=0)
    assert errors.max() < tolerance
    assert site.products - 1 <= {1e-1: 8, 1e-3: 18}[tolerance]


def test_the_sketch_saves_products():
    counts = []
    for sketch in (1, 200):
        site = synthetic(600, torch.float64)
        regress(site.apply, site.M, site.mean_diagonal, RIDGE, sketch=sketch, dtype=torch.float64)
        counts.append(site.products)
    assert counts[1] < counts[0] / 3


@pytest.fixture(scope="module")
def digits_site() -> tuple[Tensor, Tensor]:
    """phi and u of the first hidden layer of a trained perceptron."""
    pytest.importorskip("sklearn")
    images = rf.data.digits()
    net = mlp((64, 48, 10), seed=0)
    train(net, images.x_train, images.y_train, epochs=3)
    with torch.no_grad():
        z = net[:2](images.x_train)
    return z.relu(), z / math.sqrt(z.shape[1])


def test_a_site_of_a_trained_network_in_float32(digits_site):
    """Predictions agree to 1e-4 with those of S in float64, from the same float32 features."""
    site = Site(*digits_site, 1500)
    A = regress(site.apply, site.M, site.mean_diagonal, RIDGE)
    features = site.features()
    wanted = directly(site.M, features.T @ features / len(features), RIDGE * site.mean_diagonal)
    assert error(features @ A.T, features @ wanted.T) < 1e-4


def test_centred_and_normalised_features(digits_site):
    """Products with a second moment about a vector, by float32 passes, compared with the features themselves."""
    site = Site(*digits_site, 600)
    subtracted, inverse = site.mean * 0.9, 1 + draw(600, dtype=torch.float64).abs()
    f = (site.features() - subtracted) * inverse
    apply = products_about(site.apply, site.mean, subtracted, inverse)
    for columns in (600, 40):
        V = draw(5, columns)
        assert error(apply(V), V.double() @ (f.T @ f / len(f))[:columns]) < 1e-5  # float32 sums, after cancellation
    M = digits_site[0].double().T @ f / len(f)
    mean_diagonal = float(f.square().mean())
    A = regress(apply, M, mean_diagonal, RIDGE)
    wanted = directly(M, f.T @ f / len(f), RIDGE * mean_diagonal)
    assert error(f @ A.T, f @ wanted.T) < 1e-4  # as above


class Largest(TorchDispatchMode):
    """How many numbers the largest new tensor has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            self.numbers = max(self.numbers, t.numel() if isinstance(t, Tensor) else 0)
        return out


def test_nothing_of_size_n_by_n():
    n, sketch = 3000, 50
    site = synthetic(n, torch.float32, N=400, d=3)
    with Largest() as seen:
        regress(site.apply, site.M, site.mean_diagonal, RIDGE, tolerance=0.1, sketch=sketch)
    assert seen.numbers == sketch * n


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"ridge": -1}, ValueError, "ridge=-1: wanted a finite number, at least 0"),
        ({"ridge": math.inf}, ValueError, "ridge=inf: wanted a finite number, at least 0"),
        ({"ridge": "small"}, TypeError, "ridge is a str: wanted a number"),
        ({"solver": "cholesky"}, ValueError, "solver='cholesky': wanted one of summed, kernel, products"),
    ],
)
def test_bad_fields_are_refused_when_the_object_is_made(fields, error, message):
    with pytest.raises(error, match=message):
        Regression(**fields)


def test_bad_input():
    M, good = torch.ones(2, 5, dtype=torch.float64), lambda V: torch.zeros(len(V), 5, dtype=torch.float64)
    for arguments, message in (
        ((good, M.float(), 1.0, RIDGE), r"M is torch.float32 of shape \(2, 5\): wanted float64"),
        ((good, M[0], 1.0, RIDGE), r"M is torch.float64 of shape \(5,\): wanted"),
        ((good, M * math.nan, 1.0, RIDGE), "M is not finite"),
        ((good, M, 0.0, RIDGE), "mean_diagonal=0.0: wanted a finite number above 0"),
        ((good, M, 1.0, 0.0), "ridge=0.0: wanted a finite number above 0"),
        ((lambda V: V.double(), M[:, :3], 1.0, RIDGE, 2), r"apply gave torch.float64 of shape \(2, 2\): wanted"),
        ((lambda V: good(V) * math.nan, M, 1.0, RIDGE), "apply gave a product that is not finite"),
        ((good, M, 1.0, RIDGE, 6), "sketch=6: wanted 1 to n = 5"),
    ):
        with pytest.raises(ValueError, match=message):
            regress(*arguments[:4], **({"sketch": arguments[4]} if len(arguments) > 4 else {}))
    with pytest.raises(ValueError, match="tolerance=0: wanted"):
        regress(good, M, 1.0, RIDGE, tolerance=0)
    with pytest.raises(ValueError, match="max_products=0: wanted"):
        regress(good, M, 1.0, RIDGE, max_products=0)
    site = synthetic(300, torch.float64)
    with pytest.raises(RuntimeError, match=r"after 2 products the predictions are .* wanted tolerance=1e-06"):
        regress(site.apply, site.M, site.mean_diagonal, RIDGE, tolerance=1e-6, dtype=torch.float64, max_products=2)
