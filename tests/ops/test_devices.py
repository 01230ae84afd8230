# SPDX-License-Identifier: BSD-3-Clause
"""Tensors on two devices are refused by name before anything is computed. `meta` stands for a GPU: it has no memory."""

import pytest
import torch
from torch import Tensor

import rainbow_fast as rf

ops = torch.ops.rainbow_fast

X, U, A, M = torch.ones(4, 3), torch.ones(4, 2), torch.ones(3, 6), torch.ones(3, 4)
MAPS = torch.ones(2, 3, 5, 5)
SUMS = [torch.zeros(*shape, dtype=torch.float64) for shape in ((3, 6), (6,), (6,))]


def away(t: Tensor) -> Tensor:
    return t.to("meta")


@pytest.mark.parametrize(
    ("call", "name", "beside"),
    [
        (lambda: rf.cross_covariance(X, away(X)), "y", "x"),
        (lambda: rf.cross_covariance_(away(torch.zeros(3, 3, dtype=torch.float64)), X), "out", "x"),
        (lambda: ops.patch_covariance(MAPS, away(MAPS), [3, 1, 1, 1], None, None), "y", "x"),
        (lambda: rf.sample_project_align(5, X, away(A), seed=1), "A", "L"),
        (
            lambda: ops.sample_project_align_out(X, rf.key(1), 1.0, None, None, away(torch.zeros(5, 3))),
            "out",
            "L",
        ),
        (lambda: rf.random_features(U, 6, seed=1, shift=away(torch.ones(4))), "shift", "u"),
        (lambda: rf.random_features(U, 6, G=away(torch.ones(6, 2))), "G", "u"),
        (lambda: rf.random_features_covariance(away(X), U, 6, seed=1), "x", "u"),
        (lambda: rf.random_features_covariance(X, U, 6, seed=1, x_center=away(X[0])), "x_center", "u"),
        (lambda: rf.random_features_covariance(X, U, 6, seed=1, center=away(torch.ones(6))), "center", "u"),
        (lambda: rf.random_features_projection(U, away(A), seed=1), "A", "u"),
        (
            lambda: ops.random_features_out(
                U, None, rf.key(1), None, "relu", 0.0, 1.0, None, None, away(torch.ones(4, 6))
            ),
            "out",
            "u",
        ),
        (
            lambda: ops.random_features_covariance_out(
                X, U, None, None, None, rf.key(1), None, "relu", 0.0, 1.0, None, None, SUMS[0], away(SUMS[1]), SUMS[2]
            ),
            "total",
            "u",
        ),
        (
            lambda: ops.polar_out(M, False, None, None, None, None, away(M), torch.zeros(4, dtype=torch.float64)),
            "out",
            "M",
        ),
    ],
)
def test_tensors_on_two_devices_are_refused(call, name: str, beside: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is on meta: wanted the device of {beside}, cpu"):
        call()
