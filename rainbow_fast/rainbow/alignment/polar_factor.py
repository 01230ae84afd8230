# SPDX-License-Identifier: BSD-3-Clause
"""The alignment of the paper: the polar factor of M."""

from __future__ import annotations

from dataclasses import dataclass

from rainbow_fast.rainbow.alignment.alignment import Alignment


@dataclass(frozen=True)
class PolarFactor(Alignment):
    """``A = U V^T`` for ``M = U S V^T``. Null directions of M are mapped to zero.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), equation 6.
    """

    reads_inputs = False


@dataclass(frozen=True)
class CompletePolarFactor(Alignment):
    """``A = U V^T`` for ``M = U S V^T``. Null directions of M are mapped to each other by an isometry."""

    rank = "complete"
    reads_inputs = False
