# SPDX-License-Identifier: BSD-3-Clause
"""Gram matrices of networks of infinite width with white weights, compared with patches written out one by one."""

import json

import pytest
import torch
from here import ROOT, draw
from torch import Tensor
from torch.nn import functional as F

from rainbow_fast.infinite_width import Gram, expected_kernel, expected_kernel_of_gram, expected_power

pytest.importorskip("scipy")

# Some hundred roundings of float64 in sums of numbers of order one.
ROUNDED = {"rtol": 1e-13, "atol": 1e-14}
# More, where a cosine of rounded numbers enters: tanh has a series of 64 terms with an error of 1e-13.
COMPOSED = {"rtol": 1e-12, "atol": 1e-13}


def images(count: int, side: int = 5, seed: int = 0) -> Tensor:
    return draw(count, 3, side, side, dtype=torch.float64, seed=seed)


def patches(x: Tensor, size: int, **how: int) -> Tensor:
    """(N, positions, inputs of a neuron)."""
    return F.unfold(x, size, **how).mT


def places(side: int, size: int, **how: int) -> Tensor:
    """(positions, places of the patch): the index of each place, -1 outside of the map."""
    numbers = torch.arange(1.0, side**2 + 1, dtype=torch.float64).view(1, 1, side, side)
    return F.unfold(numbers, size, **how)[0].T.long() - 1


def patch_means(K: Tensor, at: Tensor) -> Tensor:
    """(N, N', positions, positions): the mean over the places of a patch of K (N, N', p, p), zero outside."""
    total = torch.zeros(*K.shape[:2], len(at), len(at), dtype=K.dtype)
    for p, row in enumerate(at.tolist()):
        for q, column in enumerate(at.tolist()):
            for i, j in zip(row, column, strict=True):
                if i >= 0 and j >= 0:
                    total[:, :, p, q] += K[:, :, i, j]
    return total / at.shape[1]


def all_kernels(x: Tensor, y: Tensor, activation: str) -> Tensor:
    """(N, N', p, p') kernels of rows x (N, p, r) and y (N', p', r)."""
    K = expected_kernel(x.flatten(0, 1), y.flatten(0, 1), activation=activation)
    return K.view(len(x), x.shape[1], len(y), y.shape[1]).transpose(1, 2)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_two_convolutions_are_patches_written_out(activation: str) -> None:
    """Both readouts, one kernel and that of two sets, with a stride, and with a padding of zeros."""
    x, y = images(3), images(2, seed=1)
    first, second = {"stride": 2, "padding": 1}, {"padding": 1}
    rows, columns = (patches(each, 3, **first) / 27**0.5 for each in (x, y))
    K = patch_means(all_kernels(rows, columns, activation), places(3, 3, **second))
    own = []
    for side in (rows, columns):
        square = patch_means(all_kernels(side, side, activation), places(3, 3, **second))
        own.append(square.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1))  # (N, positions)
    size = (own[0][:, None, :, None] * own[1][None, :, None, :]).sqrt()
    u = torch.stack([size.new_ones(size.shape), size.new_zeros(size.shape)], -1) * own[0].sqrt()[:, None, :, None, None]
    cos = (K / size).clamp(-1, 1)
    v = torch.stack([cos, (1 - cos.square()).sqrt()], -1) * own[1].sqrt()[None, :, None, :, None]
    pairs = zip(u.flatten(0, 3), v.flatten(0, 3), strict=True)
    wanted = torch.stack([expected_kernel(a[None], b[None], activation=activation)[0, 0] for a, b in pairs])
    wanted = wanted.view(K.shape)

    def network(*sides: Tensor, all_pairs: bool) -> Gram:
        K = Gram.of(*sides, all_pairs=all_pairs).convolution(3, **first).activation(activation, max_pairs=50)
        return K.convolution((3, 3), **second).activation(activation)

    for all_pairs in (False, True):
        kernel = network(x, y, all_pairs=all_pairs)
        assert kernel.space == (3, 3)
        equal = wanted.diagonal(dim1=2, dim2=3).mean(2)
        torch.testing.assert_close(kernel.flatten().values, equal, **COMPOSED)
        both = network(torch.cat([x, y]), all_pairs=all_pairs)
        torch.testing.assert_close(both.flatten().values[:3, 3:], equal, **COMPOSED)
    torch.testing.assert_close(kernel.mean().values, wanted.mean((2, 3)), **COMPOSED)
    torch.testing.assert_close(both.mean().values[:3, 3:], wanted.mean((2, 3)), **COMPOSED)


def test_linear_layers_are_those_of_a_gram_matrix() -> None:
    x = draw(6, 4, dtype=torch.float64)
    K = Gram.of(x).linear(weight_variance=2.0, bias_variance=0.3)
    wanted = x @ x.T / 2 + 0.3
    torch.testing.assert_close(K.values, wanted, **ROUNDED)
    deep = K.activation("relu").linear().activation("erf")
    wanted = expected_kernel_of_gram(expected_kernel_of_gram(wanted), activation="erf")
    torch.testing.assert_close(deep.values, wanted, **ROUNDED)
    apart = Gram.of(x[:2], x[2:]).linear(weight_variance=2.0, bias_variance=0.3).activation("relu")
    torch.testing.assert_close(apart.linear().activation("erf").values, wanted[:2, 2:], **COMPOSED)


def test_normalised_channels_have_cosines() -> None:
    x, y = images(3, 2), images(2, 2, seed=1)
    wanted = torch.einsum("ncpq,mcpq->nmpq", F.normalize(x, dim=1), F.normalize(y, dim=1))
    apart = Gram.of(x, y).normalise()
    torch.testing.assert_close(apart.values, wanted, **ROUNDED)
    for all_pairs in (False, True):
        both = Gram.of(torch.cat([x, y]), all_pairs=all_pairs).normalise()
        torch.testing.assert_close(both.flatten().values[:3, 3:], wanted.mean((2, 3)), **ROUNDED)
    again = Gram.of(x, y).normalise().activation("relu").flatten().activation("relu").values
    whole = Gram.of(torch.cat([x, y])).normalise().activation("relu").flatten().activation("relu").values
    torch.testing.assert_close(again, whole[:3, 3:], **COMPOSED)


def test_an_input_with_itself_has_the_angle_zero() -> None:
    K = Gram.of(images(3)).convolution(3).activation("step").flatten()
    assert (K.values.diagonal() == 0.5).all()


def test_the_mean_square_is_the_diagonal() -> None:
    u, shift = draw(5, 3, dtype=torch.float64), draw(5, dtype=torch.float64, seed=1)
    for activation in ("relu", "tanh"):
        for options in ({}, {"shift": shift}):
            power = expected_power(u, activation=activation, **options)
            k = expected_kernel(u, activation=activation, **options)
            torch.testing.assert_close(power, k.diagonal(), **ROUNDED)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: Gram.of(x[:, :0]), r"x has shape \(3, 0, 5, 5\): wanted \(N, d\) or \(N, d, \*space\)"),
        (lambda x: Gram.of(x / 0), "x is not finite"),
        (lambda x: Gram.of(x, x[:, :2]), r"y has shape \(3, 2, 5, 5\): wanted \(N', 3, 5, 5\)"),
        (lambda x: Gram.of(x).linear(), r"there are maps of \(5, 5\): wanted a convolution"),
        (lambda x: Gram.of(x).flatten().convolution(3), "there are no positions"),
        (lambda x: Gram.of(x).convolution(6), r"size=6: wanted a kernel for maps of \(5, 5\) with a padding of 0"),
        (lambda x: Gram.of(x).convolution((3,)), r"size=\(3,\): wanted a kernel for maps"),
        (lambda x: Gram.of(x).convolution(3, weight_variance=-1.0), "weight_variance=-1.0: wanted a finite number"),
        (lambda x: Gram.of(x).mean(), "all_pairs=False: a mean over positions needs all pairs"),
        (lambda x: Gram.of(x, x, all_pairs=True).mean().activation("relu"), "y: after a mean, K of x and y does not"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(images(3))


ROWS = {
    "relu": lambda K: K.linear().activation("relu").linear().activation("relu").linear().activation("relu"),
    "abs": lambda K: K.linear().activation("abs").linear().activation("abs"),
    "erf": lambda K: K.linear().activation("erf").linear().activation("erf"),
    "gelu": lambda K: K.linear().activation("gelu").linear().activation("gelu"),
    "variances": lambda K: (
        K.linear(weight_variance=1.5**2, bias_variance=0.5**2)
        .activation("relu")
        .linear(weight_variance=0.7**2, bias_variance=0.2**2)
    ),
}


def convolutions(K: Gram, **how: int) -> Gram:
    return K.convolution(3, **how).activation("relu").convolution(3, **how).activation("relu")


IMAGES = {
    "flatten": lambda K: convolutions(K).flatten(),
    "mean": lambda K: convolutions(K).mean(),
    "padded": lambda K: convolutions(K, padding=1).flatten(),
}


@pytest.mark.parametrize("name", [*ROWS, *IMAGES])
def test_kernels_of_neural_tangents(name: str) -> None:
    """Kernels that `tests/helpers/neural_tangents_kernels.py` has written, to 1e-12 of their size."""
    stored = json.loads((ROOT / "tests" / "infinite_width" / "neural_tangents.json").read_text())
    x = torch.tensor(stored["rows" if name in ROWS else "images"], dtype=torch.float64)
    kernel = (ROWS | IMAGES)[name](Gram.of(x, all_pairs=name == "mean")).values
    wanted = torch.tensor(stored[name], dtype=torch.float64)
    torch.testing.assert_close(kernel, wanted, rtol=1e-12, atol=1e-12 * float(wanted.max()))
