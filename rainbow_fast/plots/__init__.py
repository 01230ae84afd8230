# SPDX-License-Identifier: BSD-3-Clause
"""Functions that draw results as matplotlib figures. They do not use pyplot: no global state, no display."""

from rainbow_fast.plots.axes import save, stacked
from rainbow_fast.plots.by_site import alignment_by_site, channels_by_site, cost_by_site
from rainbow_fast.plots.convergence import Curve, Panel, convergence
from rainbow_fast.plots.feature_spectrum import spectrum_of_features
from rainbow_fast.plots.gaps import GapCurve, GapPanel, gap_by_site, gap_panels
from rainbow_fast.plots.lyapunov import lyapunov_spectrum
from rainbow_fast.plots.novelty import against_novelty
from rainbow_fast.plots.widths import accuracy_and_error

__all__ = [
    "Curve",
    "GapCurve",
    "GapPanel",
    "Panel",
    "accuracy_and_error",
    "against_novelty",
    "alignment_by_site",
    "channels_by_site",
    "convergence",
    "cost_by_site",
    "gap_by_site",
    "gap_panels",
    "lyapunov_spectrum",
    "save",
    "spectrum_of_features",
    "stacked",
]
