# SPDX-License-Identifier: BSD-3-Clause
"""Ops and sampled networks under autocast, and networks converted to another dtype."""

import copy

import pytest
import torch
from here import draw
from torch import Tensor, nn

import rainbow_fast as rf

HALVES = [torch.bfloat16, torch.float16]
X, Y, L, A = draw(60, 8), draw(60, 5, seed=1), draw(6, 8, seed=2), draw(8, 9, seed=3)
U, P = draw(60, 6, seed=4), draw(5, 12, seed=5)

# Sums and alignments are as without autocast; the results of the other ops are rounded once.
EXACT = {
    "wavelet_modulus": lambda: rf.wavelet_modulus(X.view(60, 2, 2, 2)),
    "cross_covariance": lambda: rf.cross_covariance(X, Y),
    "patch_covariance": lambda: rf.cross_covariance(X.view(60, 2, 2, 2), patch=2),
    "polar": lambda: rf.polar(L).A,
    "random_features_covariance": lambda: rf.random_features_covariance(X, U, 12, seed=1)[0],
    "gaussian": lambda: rf.gaussian(3, 4, seed=1),
    "cross_covariance_": lambda: rf.cross_covariance_(torch.zeros(8, 8, dtype=torch.float64), X),
    "sample_project_align_": lambda: rf.sample_project_align_(torch.zeros(4, 9), L, A, seed=1),
    "polar_": lambda: rf.polar_(L.clone()).A,
    "sample_project_align, dtype": lambda: rf.sample_project_align(4, L, A, seed=1, dtype=torch.float32),
    "sample_project_align, float64": lambda: rf.sample_project_align(4, L.double(), A.double(), seed=1),
}
ROUNDED = {
    "sample_project_align": lambda: rf.sample_project_align(4, L, A, seed=1),
    "sample_project_align in two terms": lambda: rf.sample_project_align(4, L, A, seed=1, precision="bf16x2"),
    "random_features": lambda: rf.random_features(U, 12, seed=1, activation="gelu"),
    "random_features_projection": lambda: rf.random_features_projection(U, P, seed=1),
    "by the reference": lambda: rf.random_features_projection(U, P, seed=1, backend="reference"),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("call", EXACT.values(), ids=EXACT)
def test_what_autocast_does_not_change(call, dtype: torch.dtype) -> None:
    wanted = call()
    with torch.autocast("cpu", dtype=dtype):
        got = call()
    assert got.dtype == wanted.dtype and torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("call", ROUNDED.values(), ids=ROUNDED)
def test_what_autocast_rounds_once(call, dtype: torch.dtype) -> None:
    wanted = call()
    with torch.autocast("cpu", dtype=dtype):
        got = call()
    assert got.dtype == dtype and torch.equal(got, wanted.to(dtype))


def test_dtypes_that_autocast_brings_together() -> None:
    """A linear layer returns bfloat16, a normalisation float32. Ops take both, in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rf.cross_covariance(X.bfloat16(), Y), rf.cross_covariance(X.bfloat16().float(), Y))
        M = rf.random_features_covariance(X, U.bfloat16(), 12, seed=1)[0]
        assert torch.equal(M, rf.random_features_covariance(X, U.bfloat16().float(), 12, seed=1)[0])
        assert rf.random_features(U.bfloat16(), 12, seed=1).dtype == torch.bfloat16
        assert rf.polar(L.bfloat16()).A.dtype == torch.float32
        assert rf.sample_project_align(4, L.bfloat16(), A, seed=1).dtype == torch.bfloat16


GRADIENTS = {
    "cross_covariance": (lambda x: rf.cross_covariance(x, activation="gelu"), X),
    "patch_covariance": (lambda x: rf.cross_covariance(x.view(60, 2, 2, 2), patch=2), X),
    "sample_project_align": (lambda L: rf.sample_project_align(40, L, seed=1, dtype=torch.float32), L),
    "random_features_covariance": (lambda u: rf.random_features_covariance(X, u, 12, seed=1)[0], U),
    "polar": (lambda M: rf.polar(M).A, L),
}


@pytest.mark.parametrize(("function", "point"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_lose_nothing(function, point: Tensor) -> None:
    """No product is rounded to bfloat16, in the forward or the backward pass, wherever autocast is on."""

    def gradient(enabled: bool) -> Tensor:
        x = point.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = function(x)
            return torch.autograd.grad(y, x, draw(*y.shape, dtype=torch.float64, seed=9).to(y.dtype))[0]

    assert torch.equal(gradient(True), gradient(False))


# --- sampled networks ---

OPTIONS = [
    {"method": "paper"},
    {"method": "paper", "rank": 6},
    {"method": "calibrated"},
    {"method": "calibrated", "law": "bootstrap", "smoothing": 0.5},
    {"method": "paper", "law": "orthonormal", "width": 5},
    {"method": "regression"},
]


def reference(kind: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mlp":
            layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3)]
            return nn.Sequential(*layers).eval(), draw(400, 8)
        layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 2), nn.SiLU()]
        layers += [nn.Flatten(), nn.Linear(24, 3)]
        return nn.Sequential(*layers).eval(), draw(200, 2, 8, 8)


def distance(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_sampled_network(kind: str, options: dict) -> None:
    """A sampled network differs from itself in float32 as much as its reference does under the same change, within a
    factor of four: its widths are larger, and the roundings of the last layers are alike."""
    network, x = reference(kind)
    sampled, _ = rf.fit(network, x, holdout=0.0).sample(**({"factor": 2} if "width" not in options else {}), **options)
    wanted, of_reference = sampled(x), network(x)
    for dtype in HALVES:
        with torch.autocast("cpu", dtype=dtype):
            got, by_reference = sampled(x), network(x)
        assert got.dtype == by_reference.dtype == dtype
        assert distance(got, wanted) < 4 * distance(by_reference, of_reference)
        got = copy.deepcopy(sampled).to(dtype)(x.to(dtype))
        by_reference = copy.deepcopy(network).to(dtype)(x.to(dtype))
        assert got.dtype == dtype and distance(got, wanted) < 4 * distance(by_reference, of_reference)
    assert distance(copy.deepcopy(sampled).double()(x.double()), wanted) < 1e-5  # rounding of float32


@pytest.mark.parametrize("options", OPTIONS[:3], ids=str)
def test_sampling_itself_is_that_without_autocast(options: dict) -> None:
    network, x = reference("mlp")
    wanted, report = rf.fit(network, x).sample(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, again = rf.fit(network, x).sample(**options)
    assert all(torch.equal(a, b) for a, b in zip(got.state_dict().values(), wanted.state_dict().values(), strict=True))
    assert again.to_json() == report.to_json()


def test_what_stays_exact() -> None:
    network, x = reference("mlp")
    model = rf.fit(network, x, holdout=0.0)
    for options in ({"method": "calibrated", "rank": 6}, {"law": "orthonormal", "width": 5}, {"rank": 6}):
        sampled, _ = model.sample(**options)
        sites = [copy.deepcopy(sampled).to(dtype).site("1") for dtype in (*HALVES, torch.float32)]
        for name in ("U", "T", "gain", "bias", "scale", "offset"):
            held = getattr(sampled.site("1"), name)
            for site in sites:
                assert (
                    held is None or torch.equal(getattr(site, name), held) and getattr(site, name).dtype == held.dtype
                )
        assert [site.A.dtype for site in sites] == [*HALVES, torch.float32]
        assert sampled.site("1").scale.dtype == torch.float64
        assert copy.deepcopy(sampled).double().site("1").A.dtype == torch.float64


def test_saved_and_loaded_in_half_precision(tmp_path) -> None:
    network, x = reference("mlp")
    sampled, _ = rf.fit(network, x, holdout=0.0).sample(factor=2, method="calibrated")
    half = copy.deepcopy(sampled).bfloat16()
    rf.save(half, tmp_path / "half.safetensors")
    again = rf.load(tmp_path / "half.safetensors", network).bfloat16()
    assert torch.equal(half(x.bfloat16()), again(x.bfloat16()))
