# SPDX-License-Identifier: BSD-3-Clause
"""Means over the networks of one method and width, from the records of their sites."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev

from rainbow_fast.rainbow.report import Record


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over the networks of one method and factor.

    The standard deviation is NaN for a single network.

    Attributes:
        method, factor: of the networks.
        networks: number of networks.
        accuracy: (mean, standard deviation); NaN without labels.
        errors: (mean, standard deviation) by site.
    """

    method: str
    factor: float
    networks: int
    accuracy: tuple[float, float]
    errors: dict[str, tuple[float, float]]


def summaries(records: Iterable[Record]) -> list[Summary]:
    """A `Summary` for each method and factor, in the order of their first record."""
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in records:
        groups.setdefault((record["method"], record["factor"]), []).append(record)
    rows = []
    for (method, factor), group in groups.items():
        sites = dict.fromkeys(record["site"] for record in group)
        accuracies = {record["network"]: record["accuracy"] for record in group}
        errors = {site: _mean_std([r["error"] for r in group if r["site"] == site]) for site in sites}
        rows.append(Summary(method, factor, len(accuracies), _mean_std(list(accuracies.values())), errors))
    return rows


def _mean_std(values: list[float]) -> tuple[float, float]:
    if None in values:
        return math.nan, math.nan
    return mean(values), stdev(values) if len(values) > 1 else math.nan
