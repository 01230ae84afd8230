# SPDX-License-Identifier: BSD-3-Clause
"""How fast kernels and alignments of sampled networks converge, on digits: what is measured, page and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rainbow_fast import plots
from rainbow_fast.analysis.convergence import KernelConvergence, site_convergence
from rainbow_fast.analysis.rates import PowerFit, Slope, fit_power, power_law_decay, theory_slopes
from rainbow_fast.cli.grid import Step
from rainbow_fast.rainbow.laws.law import INFINITE
from rainbow_fast.rainbow.model import RainbowModel
from rainbow_fast.rainbow.report import Record, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = ("kernel", "between", "limit", "wide")  # errors of `KernelConvergence`
ALL = 2**62  # more rows than an alignment set has
RANKS = (4, 64)  # range of ranks for the power law of the spectrum
INTRODUCTION = """\
# Convergence in width

    python -m studies.convergence

Networks are trained on digits, and independent networks of each width n are sampled from them by the method "paper".
At each site, phi' are the n sampled features and khat is their kernel, at {images} test images, or at 512 positions of
their maps; k is the closed form of this kernel at the same input zh; phi are the features with which phi' is aligned.
Numbers are means over the networks. Fits are `e_inf + c n^-p`, with intervals of 95 %.

- *kernel*: `E (khat - k)^2 / E k^2`. Theory: p = 1, e_inf = 0.
- *two samples*: `E (khat - khat')^2 / E k^2` of two networks, each at its own input. This is the noise floor.
- *to the limit*: `min_A E|A phi' - phi|^2 / E|phi|^2`, where phi are infinitely many features at the same input.
- *to a wide sample*: the same error, where phi are the features of one network of four times the largest width at its
  own input. All layers up to this one contribute to it, and the error of the wide network itself remains as e_inf.
- *to the trained network*: `E|phih - phi|^2 / E|phi|^2` on the test images, where phi are the activations of the
  trained network. This network has a finite width and its rows are not Gaussian, so the error tends to a limit above 0
  as n grows. The column *asymptote* has this limit: the error of the network of infinite width, in closed form
  (`factor=math.inf`), aligned on the same images. The fit has no part in it.
"""
SECTION = """\
## {title}

![Errors against width]({figure})

A {kind} {sizes} ({accuracy:.1f} % of the test images are right), aligned on {aligned} images: {networks} networks of
each width, and one of width {wide}.
"""
FIGURES = ("convergence.png", "convolutions.png")


@dataclass(frozen=True)
class MeasuredSite:
    """The measurements at a site, and the fits to them (None for errors that do not decrease)."""

    name: str
    convergence: KernelConvergence
    trained: np.ndarray  # (networks, widths): the error relative to the trained network
    asymptote: float  # the same error of the network of infinite width
    fits: Mapping[str, PowerFit | None]
    decay: Slope


def study(
    model: RainbowModel, x: torch.Tensor, widths: list[int], networks: int, seed: int, step: Step
) -> list[MeasuredSite]:
    """Sample networks of each width and measure all sites on the images x.

    All samples of the alignment set are rows of the kernel of infinite width, so that this is the limit of the others.
    """
    errors: dict[str, dict[int, list[float]]] = {}

    def sample(n: int, index: int):
        network, report = model.sample(width=n, network_index=index, seed=seed)
        _keep(errors, n, report)
        return network

    measured = site_convergence(
        sample, x, widths, networks=networks, progress=lambda done, total, what: step(done / total, what)
    )
    _, report = model.sample(factor=math.inf, limit_rows=ALL)
    _keep(errors, INFINITE, report)
    return [
        _fitted(name, one, np.array([errors[name][n] for n in widths]).T, errors[name][INFINITE][0])
        for name, one in measured.items()
    ]


def records(sites: list[MeasuredSite], about: Mapping[str, Any]) -> list[Record]:
    """The records from which the page is made; they hold only numbers and names.

    They are the description `about` of the reference, and for each site its spectrum and the errors of each network.
    Those of several references follow each other.
    """
    listed: list[Record] = [{"about": dict(about)}]
    for site in sites:
        measured = site.convergence
        head = {"site": site.name, "spectrum": measured.spectrum.tolist(), "wide_width": measured.wide_width}
        listed.append(head | {"asymptote": site.asymptote})
        for place, n in enumerate(measured.widths.tolist()):
            for network in range(len(measured.kernel)):
                errors = {name: float(getattr(measured, name)[network, place]) for name in MEASURED}
                errors["trained"] = float(site.trained[network, place])
                listed.append({"site": site.name, "width": n, "network": network} | errors)
    return listed


def from_records(listed: Sequence[Record]) -> list[tuple[Record, list[MeasuredSite]]]:
    """The arguments of `records` for each reference, in the order (about, sites), from the results."""
    starts = [place for place, record in enumerate(listed) if "about" in record]
    return [_of_reference(listed[a:b]) for a, b in pairwise([*starts, len(listed)])]


def _of_reference(listed: Sequence[Record]) -> tuple[Record, list[MeasuredSite]]:
    sites = []
    for head in (r for r in listed if "spectrum" in r):
        rows = [r for r in listed if r.get("site") == head["site"] and "width" in r]
        widths = sorted({r["width"] for r in rows})
        errors = {
            name: np.array([[r[name] for r in rows if r["width"] == n] for n in widths]).T
            for name in (*MEASURED, "trained")
        }
        trained = errors.pop("trained")
        spectrum = np.array(head["spectrum"])
        measured = KernelConvergence(np.array(widths), **errors, wide_width=head["wide_width"], spectrum=spectrum)
        sites.append(_fitted(head["site"], measured, trained, head["asymptote"]))
    return listed[0]["about"], sites


def _fitted(name: str, measured: KernelConvergence, trained: np.ndarray, asymptote: float) -> MeasuredSite:
    """A site with the power laws that are fitted to its errors and its spectrum."""
    decay = power_law_decay(measured.spectrum, first=RANKS[0], last=RANKS[1])
    return MeasuredSite(name, measured, trained, asymptote, _fits(measured, trained), decay)


def page(measured: Sequence[tuple[Record, list[MeasuredSite]]]) -> str:
    """The text of the page, with a section for each reference."""
    parts = zip(measured, FIGURES, strict=True)
    sections = [_section(about, sites, figure) for (about, sites), figure in parts]
    return "\n".join([INTRODUCTION.format(images=measured[0][0]["images"]), *sections])


def _section(about: Record, sites: list[MeasuredSite], figure: str) -> str:
    first = sites[0].convergence
    title = about["kind"].capitalize()
    shape = {"networks": len(first.kernel), "wide": first.wide_width, "figure": figure, "title": title}
    introduction = SECTION.format(**about, **shape)
    decays = []
    for site in sites:
        low, high = site.decay.interval
        text = (
            f"Site {site.name}: eigenvalues of `E[phi phi^T]` fall as `m^-alpha`, alpha = {site.decay.alpha:.2f} "
            f"({low:.2f} to {high:.2f}) over the ranks {RANKS[0]} to {RANKS[1]}."
        )
        if site.decay.alpha > 1:
            theory = theory_slopes(site.decay.alpha)
            text += (
                f"\nThis gives the exponents of the alignment error: {theory.theorem:.2f} (theorem 1, a bound), "
                f"{theory.kpca:.2f} (kernel principal components),\n{theory.heuristic:.2f} (by perturbation, no proof)."
            )
        decays.append(text + "\n")
    return "\n".join([introduction, "\n".join(table(sites)) + "\n", *decays])


def figure(sites: list[MeasuredSite], title: str) -> Figure:
    """Three panels: errors of kernels, alignment errors with wider networks, errors relative to the trained network."""

    def curve(site: MeasuredSite, kind: str, name: str) -> plots.Curve:
        errors = site.trained if name == "trained" else getattr(site.convergence, name)
        fitted = site.fits.get(name)
        limit = site.asymptote if name == "trained" else None
        return plots.Curve(f"site {site.name}", kind, errors, None if fitted is None else fitted[:3], limit)

    kernels = [curve(s, kind, name) for s in sites for kind, name in (("kernel", "kernel"), ("two samples", "between"))]
    wide = f"width {sites[0].convergence.wide_width}"
    aligned = [curve(s, kind, name) for s in sites for kind, name in (("infinite width", "limit"), (wide, "wide"))]
    alpha = min(site.decay.alpha for site in sites)
    theory = theory_slopes(alpha) if alpha > 1 else None
    slopes = {} if theory is None else {"theorem 1": theory.theorem, "KPCA": theory.kpca, "heuristic": theory.heuristic}
    panels = [
        plots.Panel("kernel, against its limit", kernels, {"theory": 1.0}),
        plots.Panel("aligned with wider samples", aligned, slopes),
        plots.Panel("aligned with the trained network", [curve(s, "error", "trained") for s in sites]),
    ]
    return plots.convergence(sites[0].convergence.widths.tolist(), panels, title=title)


def _fits(convergence: KernelConvergence, trained: np.ndarray) -> dict[str, PowerFit | None]:
    """The fit to each error.

    The standard deviation of the error relative to the trained network is taken as ``s n^-1/2``, with one s for all
    widths. It is not proportional to this error, because the error does not tend to zero.
    """
    networks, count = convergence.kernel.shape
    n = np.broadcast_to(convergence.widths, (networks, count))
    sigma = np.sqrt((trained.var(0, ddof=1) * convergence.widths).mean() / (networks * convergence.widths))
    calls = {
        "kernel": lambda: fit_power(n, convergence.kernel, e_inf=0),
        "limit": lambda: fit_power(n, convergence.limit),
        "wide": lambda: fit_power(n, convergence.wide),
        "trained": lambda: fit_power(convergence.widths, trained.mean(0), sigma),
    }
    fits: dict[str, PowerFit | None] = {}
    for name, call in calls.items():
        try:
            fits[name] = call()
        except ValueError:  # too few widths, or errors that do not decrease
            fits[name] = None
    return fits


def table(sites: list[MeasuredSite]) -> list[str]:
    names = {
        "kernel": "kernel",
        "limit": "to the limit",
        "wide": "to a wide sample",
        "trained": "to the trained network",
    }
    first = sites[0].convergence.widths
    lines = [
        ["site", "error", f"n = {first[0]}", f"n = {first[-1]}", "p", "e_inf", "asymptote"],
        ["---"] * 7,
    ]
    for site in sites:
        for name, title in names.items():
            errors = (site.trained if name == "trained" else getattr(site.convergence, name)).mean(0)
            fitted = site.fits[name]
            cells = ["no fit", ""]
            if fitted is not None:
                low, high = fitted.p_interval
                ends = fitted.e_inf_interval
                cells = [
                    f"{fitted.p:.2f} ({low:.2f} to {high:.2f})",
                    f"{fitted.e_inf:.2g} ({ends[0]:.2g} to {ends[1]:.2g})",
                ]
                cells[1] = "0 (known)" if name == "kernel" else cells[1]
            limit = f"{site.asymptote:.4g}" if name == "trained" else "" if name == "wide" else "0"
            lines.append([site.name, title, *(f"{errors[at]:.4g}" for at in (0, -1)), *cells, limit])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _keep(errors: dict[str, dict[int, list[float]]], n: int, report: Report) -> None:
    for site in report.sites:
        assert site.held_out_error is not None
        errors.setdefault(site.site, {}).setdefault(n, []).append(site.held_out_error)
