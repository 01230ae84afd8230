# SPDX-License-Identifier: BSD-3-Clause
"""Alignments that are computed from moments: polar factor, regression, several references, classifier.

To use your own alignment, write a subclass of `Alignment` and pass an object: ``sample(alignment=MyAlignment())``.
"""

from rainbow_fast.rainbow.alignment.alignment import Alignment
from rainbow_fast.rainbow.alignment.polar_factor import CompletePolarFactor, PolarFactor
from rainbow_fast.rainbow.alignment.regression import Regression

ALIGNMENTS: dict[str, type[Alignment]] = {
    "polar": PolarFactor,
    "polar_complete": CompletePolarFactor,
    "regression": Regression,
}

__all__ = ["ALIGNMENTS", "Alignment", "CompletePolarFactor", "PolarFactor", "Regression"]
