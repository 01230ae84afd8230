# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.cifar10` as a table in Markdown and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from rainbow_fast import plots
from rainbow_fast.cli.terminal import mean_and_deviation
from rainbow_fast.rainbow.report import Record
from rainbow_fast.rainbow.summaries import Summary, summaries
from rainbow_fast.tables import markdown as grid
from studies.cifar10.cases import FIGURE_METHODS, TITLES, limits

INTRODUCTION = """\
# Rainbow networks on CIFAR-10

    python -m studies.cifar10 cifar-10-batches-bin

![Accuracy and error against width](cifar10.png)

The two networks of the published tutorial (Guth, Menard, Rochette, Mallat, JMLR 2024) on grey images are trained as in
the tutorial, {trainings} times each. From each trained network, networks of 1, 4, 16 and 64 times its width are
sampled. Every number is the mean over the sampled networks of all trainings, ± one standard deviation, on the 10,000
test images; the number of networks is in brackets. The alignment set is the first 5,000 training images. It is the
first 20,000 for the flattened alignment and for the regression of the MLP (with a ridge of 1e-2, otherwise 1e-3).

- *paper*, *calibrated*, *regression*: the methods of `RainbowModel.sample`. Only *paper* is the published law. Its
  published accuracies are 30.6 % for the MLP and, with the flattened alignment, 40.3 % for the CNN, both at x1.
  *Regression* is layerwise regression on random features, and not a rainbow network: it shows what the same neurons can
  do at best.
- *white, C = I*: the weights of each layer are white, as in an untrained network, with the trace of the trained
  covariance. Only alignments are learned.
- *second trained network*: it takes the place of a sampled network, and is aligned with the first one site by site.
- *50,000 images*: aligned on all training images, with the same random numbers as the networks of the first row.
- *untrained*: sampled from the same architecture at its initialisation. *Classifier refit*: the classifier is refit by
  ridge regression on the wide features of the alignment set.
- *rows bootstrapped*: neurons of the reference, drawn with replacement. This is a control, because the sampled network
  has the reference's own neurons.
"""
LIMIT = """\
With the paper's law the error does **not** tend to zero as the width grows. Its rows are Gaussian and its alignments
orthogonal, and infinitely many of these neurons compute another function than the reference. The table shows the fit of
`limit + c (n/d)^-p` to the mean errors at the measured widths:
"""


def table(records: Sequence[Record]) -> str:
    """The text of the page: accuracies, errors and their limits."""
    trainings = len({record["network"].split(".")[0] for record in records})
    parts = [INTRODUCTION.format(trainings=trainings)]
    for architecture, title in TITLES.items():
        mine = [record for record in records if record["architecture"] == architecture]
        if mine:
            parts += _section(architecture, title, mine)
    return "\n".join(parts)


def _section(architecture: str, title: str, records: list[Record]) -> list[str]:
    cells = {(row.method, row.factor): row for row in summaries(records)}
    methods, factors = list(dict.fromkeys(m for m, _ in cells)), sorted({f for _, f in cells})
    sites, sizes = list(dict.fromkeys(record["site"] for record in records)), [f"x{f:g}" for f in factors]
    rows = [[m, *(_accuracy(cells.get((m, f))) for f in factors)] for m in methods]
    initial = _references(records, trained=False)
    trained = f"Trained: {_percent(_references(records))} %."
    trained += f" As initialised: {_percent(initial)} %." if initial else ""
    parts = [f"## {title}\n", trained + " Test accuracy in per cent:\n", grid(["", *sizes], rows)]
    rows = [[m, s, *(_error(cells.get((m, f)), s) for f in factors)] for m in methods for s in sites]
    parts += ["Held-out error `E|phih - phi|^2 / E|phi|^2` at each site:\n", grid(["", "site", *sizes], rows)]
    widest, rows = max(f for m, f in cells if m == "paper"), []
    for fit in limits(records, architecture):
        measured = cells["paper", widest].errors[fit.site][0]
        rows.append([fit.site, f"**{fit.limit:.3f}**", f"{fit.c:.3f}", f"{fit.p:.2f}", f"{measured:.3f}"])
    return [*parts, LIMIT, grid(["site", "limit", "c", "p", f"measured at x{widest:g}"], rows)] if rows else parts


def figure(records: Sequence[Record]) -> bytes:
    """The figure as a PNG: accuracy and error against width, with a row of panels for each architecture."""
    rows = []
    for architecture, title in TITLES.items():
        mine = [record for record in records if record["architecture"] == architecture]
        shown = [record for record in mine if record["method"] in FIGURE_METHODS]
        if not shown:
            continue
        second = [row.accuracy[0] for row in summaries(mine) if row.method == "second trained network"]
        levels = {"second trained": second, "untrained": _references(mine, trained=False)}
        panels = plots.accuracy_and_error(
            shown,
            reference=mean(_references(mine)),
            baselines={name: mean(level) for name, level in levels.items() if level},
            title=f"{title} on grey CIFAR-10",
        )
        rows.append(panels)
    return plots.stacked(rows)


def _references(records: list[Record], *, trained: bool = True) -> list[float]:
    """The accuracies of the references, trained or with initial weights, in the order of trainings."""
    chosen = [record for record in records if record["method"].startswith("untrained") is not trained]
    return [value for _, value in sorted({(r["network"].split(".")[0], r["reference_accuracy"]) for r in chosen})]


def _percent(accuracies: list[float]) -> str:
    return " / ".join(f"{100 * value:.1f}" for value in accuracies)


def _accuracy(row: Summary | None) -> str:
    if row is None:
        return ""
    return f"{mean_and_deviation(100 * row.accuracy[0], 100 * row.accuracy[1], digits=1)} ({row.networks})"


def _error(row: Summary | None, site: str) -> str:
    return "" if row is None else mean_and_deviation(*row.errors[site], digits=3)
