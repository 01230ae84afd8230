# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.resnet20` as a page in Markdown and as a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import mean, stdev

from rainbow_fast import plots
from rainbow_fast.analysis.limits import fit_limit
from rainbow_fast.cli.terminal import mean_and_deviation
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown as grid
from studies.resnet20.cases import TRAINED, UNTRAINED, H, Point, points, smoothed

MAIN = ("calibrated", "regression", "paper", "naive")
INTRODUCTION = """\
# Rainbow networks of a residual network

    python -m studies.resnet20 cifar-10-batches-bin WEIGHTS --compare ANOTHER

![Accuracy and error against width and against novelty](resnet20.png)

A trained ResNet for CIFAR-10 ({sites} sites, test accuracy {accuracy:.1f} %) is sampled at 1 to {widest:g} times its
width. Sampled networks are aligned on the first {images:,} training images and measured on the first {held:,} test
images, on which one standard error of an accuracy is up to {error:.1f} points. Numbers are means over sampled networks,
± one standard deviation; the number of networks is in brackets.

- *paper*, *calibrated*, *regression*: the methods of `RainbowModel.sample`. All of them keep the residual sums in the
  coordinates of the reference. *Regression* is layerwise regression on random features, and not a rainbow network: it
  shows what the same neurons can do at best.
- *naive*: residual networks sampled as by the published codes. Each convolution has its own random rows, and its batch
  norm is recomputed. But the new neuron i keeps the affine part of the old one, and the shortcut adds activations of
  another random basis.
- *paper, rows bootstrapped*: neurons of the reference, drawn with replacement. This is a control, because the sampled
  network has the reference's own neurons.
- *smoothed bootstrap, h*: calibrated, where each neuron is `sqrt(1 - h^2)` times a neuron of the reference plus `h`
  times a Gaussian combination. The mean and the covariance of the neurons are the same for all h.
- *calibrated, white convolutions*: calibrated, but the convolutions have white weights with the power of the trained
  ones. Of the trained network only alignments, scales, offsets and biases are used, and one number for each layer.
- *untrained*: the same architecture at its initialisation, with its batch norms set to the images. *Itself* is this
  network with its last layer refit.
"""
NOVELTY = """\
## How new may a neuron be?

*Novelty* is the mean distance of a sampled neuron to the nearest neuron of the reference, divided by the mean distance
of the reference's neurons to their nearest neighbours. The distance is the root mean square of the difference of two
pre-activations, `sqrt((g - e_k)^T E[z z^T] (g - e_k))`, over images and positions. A novelty of 0 means the reference's
own neurons; 1 means as far from them as they are from each other. The table has means over the sites, at the width x4.
Its errors are defined as above: the mean over all sites, and the error at the last site.
"""
LIMITS = """\
## The limit of the error, and the width of the reference

The table has the mean over all sites of `E|phih - phi|^2 / E|phi|^2` on test images. `limit` is that of the fit
`limit + c (n/d)^-p` to the mean errors at the widths of the table. With three widths the fit is exact and has no error
bar. References that were trained differently have different activations; compare only those of the same training.
"""
ERRORS = """\
## Errors site by site

Held-out `E|phih - phi|^2 / E|phi|^2`, mean over networks. Site 2.0.b is the second site of block 0 of stage 2:
"""

Found = dict[tuple[str, float], list[Point]]


def table(records: Sequence[Record]) -> str:
    """The text of the page."""
    trained = [r for r in records if r["reference"] == TRAINED]
    first, widest = trained[0], max(r["factor"] for r in trained)
    parts = [
        INTRODUCTION.format(
            sites=len({r["site"] for r in trained}),
            accuracy=100 * _accuracy(trained),
            widest=widest,
            images=first["images"],
            held=first["held_out_images"],
            error=50 / math.sqrt(first["held_out_images"]),
        )
    ]
    by_method, initial = points(records), points(records, UNTRAINED)
    by_method |= {(f"untrained, {method}", factor): group for (method, factor), group in initial.items()}
    parts += [
        "## Accuracy\n",
        "With the trained classifier, in per cent:\n",
        _accuracies(by_method, lambda p: p.accuracy),
    ]
    parts += ["With the classifier refit by ridge regression on the wide features of the alignment images:\n"]
    parts += [_accuracies(by_method, lambda p: p.refit_accuracy)]
    parts += [ERRORS, _errors(trained)]
    parts += [NOVELTY, _novelties(records), *_limits(records)]
    return "\n".join(parts)


def figure(records: Sequence[Record]) -> bytes:
    """The figure as a PNG: accuracy and error against width, and for each reference against novelty."""
    trained = [r for r in records if r["reference"] == TRAINED]
    shown = [r | {"site": _short(r["site"])} for method in MAIN for r in trained if r["method"] == method]
    names = list(dict.fromkeys(r["site"] for r in shown))
    sites = [names[0], names[len(names) // 2], names[-1]]
    figures = [
        plots.accuracy_and_error(shown, reference=_accuracy(trained), sites=sites, title="ResNet-20 on CIFAR-10")
    ]
    for name in dict.fromkeys(r["reference"] for r in records):
        mine = [r for r in records if r["reference"] == name]
        by_method = points(mine, name)
        groups = [by_method[smoothed(h), 4.0] for h in H if (smoothed(h), 4.0) in by_method]
        if groups:
            rows = [[asdict(point) for point in group] for group in groups]
            title = f"{_label(mine)}: smoothed bootstrap at x4, h from {H[0]:g} (left) to {H[-1]:g}"
            figures.append(plots.against_novelty(rows, reference=_accuracy(mine), title=title))
    return plots.stacked(figures)


def _accuracy(records: Sequence[Record]) -> float:
    """The accuracy of the reference of these records."""
    return next(r["reference_accuracy"] for r in records if "reference_accuracy" in r)


def _label(records: Sequence[Record]) -> str:
    """The name, width and accuracy of the reference of these records."""
    return f"{records[0]['reference']}: width {records[0]['d']}, {100 * _accuracy(records):.1f} %"


def _accuracies(by_method: Found, of: Callable[[Point], float]) -> str:
    factors = sorted({factor for _, factor in by_method})
    rows = [
        [method, *(_percent(by_method.get((method, factor), []), of) for factor in factors)]
        for method in dict.fromkeys(method for method, _ in by_method)
    ]
    return grid(["", *(f"x{factor:g}" for factor in factors)], rows)


def _percent(group: Sequence[Point], of: Callable[[Point], float]) -> str:
    return f"{_mean((100 * of(p) for p in group), 1)} ({len(group)})" if group else ""


def _mean(values: Iterable[float], digits: int) -> str:
    numbers = list(values)
    return mean_and_deviation(mean(numbers), stdev(numbers) if len(numbers) > 1 else math.nan, digits=digits)


def _errors(trained: Sequence[Record]) -> str:
    """A table with a row for each site, and columns for the methods of the figure at their least and largest width."""
    errors: dict[tuple[str, float], dict[str, list[float]]] = {}
    for r in trained:
        if r["method"] in MAIN:
            errors.setdefault((r["method"], r["factor"]), {}).setdefault(r["site"], []).append(r["error"])
    ends = {method: [f for m, f in errors if m == method] for method in MAIN}
    columns = [(m, f) for m, factors in ends.items() if factors for f in sorted({min(factors), max(factors)})]
    sites = list(dict.fromkeys(r["site"] for r in trained))
    rows = [[_short(site), *(f"{mean(errors[column][site]):.3f}" for column in columns)] for site in sites]
    return grid(["site", *(f"{method} x{factor:g}" for method, factor in columns)], rows)


def _short(site: str) -> str:
    """`2.0.b` for `layer2.0.activation_1`, the second site of the first block of the second stage; `stem`."""
    block = site.removeprefix("layer").removesuffix("_1").removesuffix("activation")
    return block + ("b" if site.endswith("_1") else "a") if block else "stem"


def _novelties(records: Sequence[Record]) -> str:
    """A table with a row for each law and each reference that has networks of the smoothed bootstrap."""
    names = {smoothed(h): f"h = {h:g}" for h in H} | {"calibrated": "calibrated (orthonormal)", "paper": "paper"}
    rows = []
    for reference in dict.fromkeys(r["reference"] for r in records if r["method"] in map(smoothed, H)):
        by_method = points(records, reference)
        for method, name in names.items():
            group = by_method.get((method, 4.0))
            if group:
                cells = [_mean((getattr(p, key) for p in group), 2) for key in ("novelty", "error", "last_error")]
                accuracies = [_percent(group, lambda p: p.accuracy), _percent(group, lambda p: p.refit_accuracy)]
                rows.append([reference, name, cells[0], *accuracies, *cells[1:]])
    return grid(["reference", "", "novelty", "accuracy", "refit", "error", "at the last site"], rows)


def _limits(records: Sequence[Record]) -> list[str]:
    """A table with a row for each reference and method with at least three widths."""
    rows, factors = [], sorted({r["factor"] for r in records})
    for name in dict.fromkeys(r["reference"] for r in records):
        by_method = points(records, name)
        for method in ("calibrated", "regression"):
            errors = {f: mean(p.error for p in group) for (m, f), group in sorted(by_method.items()) if m == method}
            if len(errors) < 3:
                continue
            limit, _, power = fit_limit(errors)
            label = _label([r for r in records if r["reference"] == name])
            measured = [f"{errors[factor]:.3f}" if factor in errors else "" for factor in factors]
            widest = _percent(by_method[method, max(errors)], lambda p: p.accuracy)
            rows.append([label, method, *measured, f"**{limit:.3f}**", f"{power:.2f}", widest])
    sizes = [f"x{factor:g}" for factor in factors]
    return [LIMITS, grid(["reference", "", *sizes, "limit", "p", "accuracy at the widest"], rows)] if rows else []
