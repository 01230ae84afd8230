# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of a layer as a map of correlations: values, slopes, and many layers."""

import math

import pytest
import torch
from torch import Tensor

from rainbow_fast.infinite_width import KernelMap, expected_kernel
from rainbow_fast.infinite_width.expectations import NAMES


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("activation", [*NAMES, torch.atan], ids=lambda name: getattr(name, "__name__", name))
def test_map_is_the_kernel_and_its_slopes(activation) -> None:
    """kappa is `expected_kernel`; slopes are differences of kappa.

    Differences of four points 1e-3 apart have an error of the order 1e-12 at 0 from terms that are left out, and of
    1e-12 from rounding.
    """
    size, h = 0.8, 1e-3
    kappa = KernelMap(activation, size=size)
    rho = numbers(-1, -0.4, 0, 0.7, 1)
    v = size * torch.stack([rho, (1 - rho.square()).sqrt()], 1)
    wanted = expected_kernel(size * numbers(1, 0).unsqueeze(0), v, activation=activation)[0]
    torch.testing.assert_close(kappa(rho), wanted, rtol=1e-12, atol=1e-11)  # two lengths of a series
    assert kappa.power == pytest.approx(float(wanted[-1]), rel=1e-11)
    assert kappa.mean_squared == pytest.approx(float(wanted[2]), abs=1e-11)
    far, low, high, end = kappa(numbers(-2 * h, -h, h, 2 * h)).tolist()
    assert (8 * (high - low) - (end - far)) / (12 * h) == pytest.approx(kappa.slope_at_0, abs=1e-10)
    if activation in ("step", "sign"):
        assert kappa.slope_at_1 == math.inf
    else:  # the slope at 1 of kinks is reached with the root of the distance: 2 sqrt(2 h) / pi of it for abs
        slope = float(kappa(numbers(1)) - kappa(numbers(1 - 1e-6))) * 1e6
        assert slope == pytest.approx(kappa.slope_at_1, rel=2e-3)


def test_beta_0() -> None:
    """Eight digits are published for relu; the identity has 1, an even function 2, up to rounding."""
    assert KernelMap("relu").beta_0 == pytest.approx(1.26652890, abs=5e-9)
    assert KernelMap("relu").beta_0 == pytest.approx(2 - 0.25 / (0.5 - 1 / (2 * math.pi)), abs=1e-13)
    assert KernelMap("identity").beta_0 == pytest.approx(1, abs=1e-13)
    assert KernelMap("cos").beta_0 == pytest.approx(2, abs=1e-13)


def test_relu_layers_align_slowly() -> None:
    """l theta / (3 pi) of an angle pi / 2 at the input, four digits."""
    path = KernelMap("relu", size=3.0).iterate(numbers(0.0), 1000)
    assert path.shape == (1001, 1)
    scaled = [layer * math.acos(float(path[layer])) / (3 * math.pi) for layer in (10, 100, 1000)]
    assert scaled == pytest.approx([0.5437, 0.8977, 0.9854], abs=5e-5)


def test_centred_layers_are_orthogonal_in_the_end() -> None:
    """kappa - kappa(0) goes to 0, by the factor 2 - beta_0 in each layer in the end."""
    kappa = KernelMap("relu")
    path = kappa.iterate(numbers(0.9, 0.1), 60, centred=True)
    assert float(path[-1].abs().max()) < 1e-3
    ratio = path[60] / path[59]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2 - kappa.beta_0), rtol=0, atol=1e-6)  # of order rho
    torch.testing.assert_close(kappa.correlation(numbers(0, 1), centred=True), numbers(0, 1), rtol=0, atol=1e-15)
    assert kappa.iterate(numbers(0.5), 0).tolist() == [[0.5]]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: KernelMap("swish"), ValueError, "activation='swish': wanted one of"),
        (lambda: KernelMap(size=0.0), ValueError, "size=0.0: wanted a finite number above 0"),
        (lambda: KernelMap(size=math.inf), ValueError, "size=inf: wanted a finite number above 0"),
        (lambda: KernelMap("exp", size=6), ValueError, "activation: exp grows too fast for size=6"),
        (lambda: KernelMap(size="2"), TypeError, "size is a str: wanted a number"),
        (lambda: KernelMap(lambda x: x.detach()), ValueError, "activation: <lambda> has no derivative: wanted one by"),
        (lambda: KernelMap()(numbers(0.5, 1.1)), ValueError, "rho has entries from 0.5 to 1.1: wanted numbers from -1"),
        (lambda: KernelMap()(numbers(math.nan)), ValueError, "rho has entries from nan to nan: wanted numbers from -1"),
        (lambda: KernelMap()(0.5), TypeError, "rho is a float: wanted a torch.Tensor"),
        (lambda: KernelMap().iterate(numbers(0), -1), ValueError, "layers=-1: wanted layers >= 0"),
        (lambda: KernelMap().correlation(numbers(0), centred=1), TypeError, "centred=1: wanted True or False"),
        (
            lambda: KernelMap(lambda x: 0 * x + 1).correlation(numbers(0), centred=True),
            ValueError,
            "activation: <lambda> is constant: its features have no correlation",
        ),
    ],
)
def test_refusals(call, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
