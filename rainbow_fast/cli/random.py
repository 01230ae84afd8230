# SPDX-License-Identifier: BSD-3-Clause
"""The commands `random ...`: measures of random deep networks, which need no data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from rainbow_fast.arguments import integer, one_of
from rainbow_fast.cli import terminal
from rainbow_fast.cli.grid import as_progress
from rainbow_fast.cli.random_chain import chain
from rainbow_fast.cli.random_measure import measure
from rainbow_fast.cli.sampling import JSON, OUT, check_folder, need_plots
from rainbow_fast.cli.words import Seed, Threads, flowing, set_threads
from rainbow_fast.infinite_width.expectations import NAMES
from rainbow_fast.io import dumps, write_whole
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.plots.axes import save
from rainbow_fast.plots.feature_spectrum import spectrum_of_features
from rainbow_fast.plots.lyapunov import lyapunov_spectrum
from rainbow_fast.random_networks.lyapunov import LyapunovEstimate, lyapunov_estimate
from rainbow_fast.random_networks.single_layer import feature_spectrum
from rainbow_fast.random_networks.stieltjes import LimitingSpectrum

DTYPES = {"float64": torch.float64, "float32": torch.float32}
SHOWN = 12  # rows of a table
POINTS = 400  # of the limiting density

random = typer.Typer(
    help="Measure random deep networks, and compare them with theory.", no_args_is_help=True, add_completion=False
)


@flowing
def lyapunov(
    d: Annotated[int, typer.Argument(help="Width of all layers.")],
    layers: Annotated[int, typer.Option(help="Number of layers of each product.")] = 200,
    k: Annotated[int | None, typer.Option(help="Number of exponents, the largest ones (default: all).")] = None,
    runs: Annotated[int, typer.Option(help="Number of independent products.")] = 1,
    variance: Annotated[float, typer.Option(help="Variance of the weights.")] = 1.0,
    every: Annotated[
        int, typer.Option(help="Number of layers between two orthonormal frames. It changes times, not results.")
    ] = 1,
    dtype: Annotated[str, typer.Option(help="Numbers of the products: float64 or float32.")] = "float64",
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    out: Annotated[Path | None, typer.Option(help=f"{OUT} No files are written by default.")] = None,
) -> None:
    """Estimate the Lyapunov exponents of products of Gaussian matrices, and compare them with their exact values.

    A table is printed, with the exact standard deviation of each estimate. The folder of the results holds all numbers
    (lyapunov.json) and a figure (lyapunov.png).
    """
    set_threads({"threads": threads})
    if dtype not in DTYPES:
        raise ValueError(f"--dtype: wanted float64 or float32, got {dtype!r}")
    if out is not None:
        need_plots()
        check_folder(out)
    with terminal.bar(1) as bar, bar.job(1, "lyapunov") as step:
        estimate = lyapunov_estimate(
            d, layers, k, runs=runs, seed=seed, variance=variance, every=every, dtype=DTYPES[dtype],
            progress=as_progress(step),
        )  # fmt: skip
    text = dumps(estimate.to_dict() | {"variance": variance, "seed": seed, "dtype": dtype})
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "lyapunov.json", text + "\n")
        figure = lyapunov_spectrum(estimate.exponents, estimate.theory, estimate.deviation, title=_title(estimate))
        save(figure, out / "lyapunov.png")
    if as_json:
        terminal.out().print(text, markup=False, soft_wrap=True)
        return
    terminal.print_columns(_title(estimate), ("j", "theory", "estimate", "sd", "z"), _rows(estimate))
    if out is not None:
        terminal.out().print(f"{out}: lyapunov.json, lyapunov.png", markup=False, soft_wrap=True)


@flowing
def spectrum(
    samples: Annotated[int, typer.Argument(help="Number of samples.")],
    features: Annotated[int, typer.Argument(help="Number of random neurons.")],
    inputs: Annotated[int | None, typer.Option(help="Units of a sample (default: as many as samples).")] = None,
    activation: Annotated[str, typer.Option(help=f"One of {', '.join(NAMES)}.")] = "relu",
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    out: Annotated[Path | None, typer.Option(help=f"{OUT} No files are written by default.")] = None,
) -> None:
    """Compute the eigenvalues of the Gram matrix of random features, and compare them with their limit.

    The samples are Gaussian, with entries of variance 1 / inputs. A table is printed: the mean, the mean square and the
    edges of the eigenvalues and of their limiting density. The folder of the results holds all numbers (spectrum.json)
    and a figure (spectrum.png).
    """
    set_threads({"threads": threads})
    one_of("activation", activation, NAMES)
    samples, features = integer("samples", samples, 1), integer("features", features, 1)
    inputs = samples if inputs is None else integer("inputs", inputs, 1)
    if out is not None:
        need_plots()
        check_folder(out)
    X = gaussian(samples, inputs, seed=seed, stream=1, dtype=torch.float32) / inputs**0.5
    with terminal.bar(2) as bar:
        with bar.job(1, "eigenvalues"):
            values = feature_spectrum(X, features, activation=activation, seed=seed)
        with bar.job(1, "limit"):
            limit = LimitingSpectrum.of_features(X, features, activation=activation)
            x = _bulk(values, limit)
            density = limit.density(x)
    numbers = {"samples": samples, "features": features, "inputs": inputs, "activation": activation, "seed": seed}
    limiting = {"atom": limit.atom, "edges": limit.edges().tolist(), "moments": list(limit.moments())}
    drawn = {"x": x.tolist(), "density": density.tolist()}
    text = dumps(numbers | {"eigenvalues": values.tolist(), "limit": limiting | drawn})
    title = f"{activation}, {samples} samples, {features} features"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "spectrum.json", text + "\n")
        save(spectrum_of_features(values, x, density, atom=limit.atom, title=title), out / "spectrum.png")
    if as_json:
        terminal.out().print(text, markup=False, soft_wrap=True)
        return
    positive = values[round(limit.atom * samples) :]
    rows = [
        ("mean", float(values.mean()), limit.moments()[0]),
        ("mean square", float(values.square().mean()), limit.moments()[1]),
        ("smallest above 0", float(positive.min()), float(limit.edges().min())),
        ("largest", float(values.max()), float(limit.edges().max())),
    ]
    columns = ("", "eigenvalues", "limit")
    terminal.print_columns(title, columns, [(name, f"{mine:.6g}", f"{other:.6g}") for name, mine, other in rows])
    if out is not None:
        terminal.out().print(f"{out}: spectrum.json, spectrum.png", markup=False, soft_wrap=True)


def _bulk(values: Tensor, limit: LimitingSpectrum) -> Tensor:
    """Where the density is drawn: from the first edge to the end of the interval that holds the median eigenvalue.

    The mean of the features has an eigenvalue of its own, far beyond.
    """
    edges = limit.edges()
    median = values[round(limit.atom * len(values)) :].median()
    last = edges[min(int((edges[:, 1] < median).sum()), len(edges) - 1), 1]
    first = max(float(edges[0, 0]), 1e-3 * float(last))
    return torch.linspace(first, 1.02 * float(last), POINTS, dtype=torch.float64, device="cpu")


for command in (lyapunov, spectrum, chain, measure):
    random.command()(command)


def _title(estimate: LyapunovEstimate) -> str:
    runs = len(estimate.exponents)
    return f"width {estimate.d}, {estimate.layers} layers, {runs} run{'s' * (runs > 1)}"


def _rows(estimate: LyapunovEstimate) -> list[tuple[str, ...]]:
    """A row for each exponent; the first and the last ones if there are many."""
    columns = [estimate.theory, estimate.mean, estimate.mean_deviation, estimate.scores]
    formats = ("{:.6f}", "{:.6f}", "{:.1e}", "{:+.2f}")
    rows = [
        (str(j), *(form.format(value) for form, value in zip(formats, row, strict=True)))
        for j, row in enumerate(torch.stack(columns, 1).tolist(), start=1)
    ]
    half = SHOWN // 2
    return rows if len(rows) <= SHOWN else [*rows[:half], ("...",) * 5, *rows[-half:]]
