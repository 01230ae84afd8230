# SPDX-License-Identifier: BSD-3-Clause
"""The page and the figure of the rates of convergence, from their records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from rainbow_fast import plots
from rainbow_fast.analysis.rates import PowerFit, fit_power, theory_slopes
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.rates.rate_experiment import CHANNELS, RANK, errors_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = """\
# Rates of convergence

    python -m studies.rates

![Errors of one layer against the width](rates.png)

Laws are known here, so that measured exponents stand beside those of theory. Errors are means over
{networks} layers or {deep_networks} networks of each width, relative to the power of the features. Fits are `c n^-p`,
with intervals of 95 %.

## One layer

n linear neurons have rows from `N(0, C)`, on {inputs} white inputs. *kernel* is `E (khat - k)^2 / E k^2`, whose
expectation is exactly proportional to 1/n. *aligned* is `min_A E|A phi' - phi|^2 / E|phi|^2`, where phi are infinitely
many neurons. For C = 1 of rank r = {rank}, it is `(r + 1) / 4n` to leading order:

{white}

For eigenvalues `m^-alpha` of C, theorem 1 proves that the aligned error is at most `c n^-eta`, with eta in the column
*theorem*. *KPCA* and *heuristic* are exponents that are not proven. A bound says nothing about the slope. The last
column says whether it holds: its constant is fitted at the smallest width, and every larger width must lie below,
within its interval.

{layers}
## Three layers, one of finite width

A perceptron of {channels} channels in each of three ReLU layers has covariances with eigenvalues `m^-alpha`. In its
sampled networks, one layer has n neurons and the others infinitely many (`width={{site: n, other: math.inf}}`). The
error is that of the last aligned features against those of the network of infinite widths only, at {inputs} inputs.
Theorem 2 bounds it by the sum of the terms of all layers, so that a single finite width has that of its layer.
Its alpha is that of the features. The exponents here have the alpha of the covariances, which need not be the same.

![Errors of three layers against the width](deep_rates.png)

{deep}"""


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    layers, deep = _cases(records)
    white = layers.pop(None)
    widths, errors = errors_of(white, "aligned")
    measured = [
        ["measured", *(f"{error:.3g}" for error in errors.mean(0))],
        ["(r + 1) / 4n", *(f"{(RANK + 1) / 4 / n:.3g}" for n in widths)],
    ]
    exponents = ["p", "theorem", "KPCA", "heuristic", "bound"]
    heading = ["alpha", "error", f"n = {widths[0]}", f"n = {widths[-1]}", *exponents]
    lines = []
    for alpha, mine in layers.items():
        assert alpha is not None
        for name in ("kernel", "aligned"):
            theory = theory_slopes(alpha)
            lines.append([f"{alpha:g}", name, *_row(mine, name, theory[1:] if name == "aligned" else theory[:1])])
    first = next(iter(deep.values()))
    depths = ["alpha", "layer", *(f"n = {errors_of(first, 'aligned')[0][at]}" for at in (0, -1)), *exponents]
    below = []
    for (alpha, layer), mine in deep.items():
        below.append([f"{alpha:g}", str(layer), *_row(mine, "aligned", theory_slopes(alpha)[1:])])
    return PAGE.format(
        networks=len(errors),
        inputs=white[0]["inputs"],
        rank=RANK,
        channels=CHANNELS,
        white=markdown(["C = 1", *(f"n = {n}" for n in widths)], measured).rstrip(),
        deep_networks=len(errors_of(first, "aligned")[1]),
        layers=markdown(heading, lines),
        deep=markdown(depths, below),
    )


def figure(records: Sequence[Record]) -> Figure:
    """The errors of one layer: of its kernel, and of its aligned features."""
    layers, _ = _cases(records)
    titles = {"kernel": "kernel, against its limit", "aligned": "features, aligned with their limit"}
    panels = []
    for name, title in titles.items():
        groups = (("C = 1" if alpha is None else f"alpha = {alpha:g}", mine) for alpha, mine in layers.items())
        curves = [_curve(group, "error", mine, name) for group, mine in groups]
        panels.append(plots.Panel(title, curves, {"theory": 1.0} if name == "kernel" else {}))
    return plots.convergence(errors_of(layers[None], "kernel")[0], panels, title="linear neurons of known laws")


def deep_figure(records: Sequence[Record]) -> Figure:
    """The errors of three layers, one of finite width: a panel for each alpha."""
    _, deep = _cases(records)
    panels = []
    for alpha in dict.fromkeys(alpha for alpha, _ in deep):
        mine = [_curve(f"layer {layer}", "error", own, "aligned") for (a, layer), own in deep.items() if a == alpha]
        theory = theory_slopes(alpha)
        panels.append(
            plots.Panel(f"alpha = {alpha:g}", mine, {"theorem 2": theory.theorem, "heuristic": theory.heuristic})
        )
    widths = errors_of(next(iter(deep.values())), "aligned")[0]
    return plots.convergence(widths, panels, title="three ReLU layers, one of n neurons")


def below_bound(n: Sequence[int], errors: np.ndarray, exponent: float) -> bool:
    """Whether all means lie below ``c n^-exponent`` within their intervals of 95 %, c fitted at the smallest width."""
    mean = errors.mean(0)
    half = stats.t.ppf(0.975, len(errors) - 1) * errors.std(0, ddof=1) / np.sqrt(len(errors))
    bound = mean[0] * (np.asarray(n, dtype=float) / n[0]) ** -exponent
    return bool((mean - half <= bound)[1:].all())


def fitted(n: Sequence[int], errors: np.ndarray) -> PowerFit:
    """``c n^-p`` through the errors of all networks."""
    return fit_power(np.broadcast_to(n, errors.shape), errors, e_inf=0)


def _row(records: Sequence[Record], name: str, theory: Sequence[float]) -> list[str]:
    n, errors = errors_of(records, name)
    fit = fitted(n, errors)
    ends = [f"{errors.mean(0)[at]:.2g}" for at in (0, -1)]
    exponents = [f"{value:.2f}" for value in theory] + ["-"] * (3 - len(theory))
    low, high = fit.p_interval
    holds = "-" if len(theory) == 1 else "holds" if below_bound(n, errors, theory[0]) else "fails"
    return [*ends, f"{fit.p:.2f} ({low:.2f} to {high:.2f})", *exponents, holds]


def _curve(group: str, kind: str, records: Sequence[Record], name: str) -> plots.Curve:
    n, errors = errors_of(records, name)
    return plots.Curve(group, kind, errors, fitted(n, errors)[:3])


def _cases(
    records: Sequence[Record],
) -> tuple[dict[float | None, list[Record]], dict[tuple[float, int], list[Record]]]:
    """The records of one layer by alpha, and those of three layers by alpha and layer."""
    layers: dict[float | None, list[Record]] = {}
    deep: dict[tuple[float, int], list[Record]] = {}
    for record in records:
        if "layer" in record:
            deep.setdefault((record["depth_alpha"], record["layer"]), []).append(record)
        else:
            layers.setdefault(record["alpha"], []).append(record)
    return layers, deep
