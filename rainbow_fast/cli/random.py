# SPDX-License-Identifier: BSD-3-Clause
"""The commands `random ...`: measures of random deep networks, which need no data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from rainbow_fast.cli import terminal
from rainbow_fast.cli.grid import as_progress
from rainbow_fast.cli.sampling import JSON, OUT, check_folder, need_plots
from rainbow_fast.cli.words import Seed, Threads, flowing, set_threads
from rainbow_fast.io import dumps, write_whole
from rainbow_fast.plots.axes import save
from rainbow_fast.plots.lyapunov import lyapunov_spectrum
from rainbow_fast.random_networks.lyapunov import LyapunovEstimate, lyapunov_estimate

DTYPES = {"float64": torch.float64, "float32": torch.float32}
SHOWN = 12  # rows of a table

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


for command in (lyapunov,):
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
