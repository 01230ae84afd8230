# SPDX-License-Identifier: BSD-3-Clause
"""Estimates the limit of mean errors for infinite width from the errors at a few widths."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def fit_limit(errors: Mapping[float, float]) -> tuple[float, float, float]:
    """Fit ``error = limit + c factor^-p`` to at least three mean errors, given by their width factors.

    The fit minimises the sum of squared relative residuals: for each p of 0.2, 0.21, ..., 2, limit and c are the
    solution of a linear problem, with limit >= 0. `fit_power` fits the same curve, with intervals, to four or more
    points.

    Args:
        errors: maps a width factor to the mean error at this factor; three or more, all finite and above 0.

    Returns:
        (limit, c, p).

    Raises:
        ValueError: there are fewer than three errors, or a factor or an error is not finite and above 0.
    """
    if len(errors) < 3 or not all(0 < value < math.inf for pair in errors.items() for value in pair):
        raise ValueError(f"errors: wanted three or more, factors and errors finite and above 0, got {dict(errors)}")
    factors = torch.tensor(list(errors), dtype=torch.float64, device="cpu")
    wanted = torch.tensor(list(errors.values()), dtype=torch.float64, device="cpu")
    best = (float("inf"), 0.0, 0.0, 0.0)
    for p in torch.arange(0.2, 2.005, 0.01, dtype=torch.float64, device="cpu").tolist():
        columns = torch.stack([torch.ones_like(factors), factors**-p], 1) / wanted.unsqueeze(1)
        ones = torch.ones(len(wanted), 1, dtype=torch.float64, device="cpu")
        limit, c = torch.linalg.lstsq(columns, ones).solution.squeeze(1).tolist()
        if limit < 0:
            limit, c = 0.0, float(torch.linalg.lstsq(columns[:, 1:], ones).solution)
        misfit = float((columns @ torch.tensor([limit, c], dtype=torch.float64, device="cpu") - 1).square().sum())
        best = min(best, (misfit, limit, c, p))
    return best[1:]
