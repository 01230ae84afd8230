# SPDX-License-Identifier: BSD-3-Clause
"""The command `random chain`: how orthogonal a batch is, layer by layer of random networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from rainbow_fast.arguments import integer, one_of
from rainbow_fast.cli import terminal
from rainbow_fast.cli.grid import as_progress
from rainbow_fast.cli.readers import numbers
from rainbow_fast.cli.sampling import JSON, OUT, check_folder, need_plots
from rainbow_fast.cli.words import Seed, Threads, flowing, set_threads
from rainbow_fast.io import dumps, write_whole
from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.plots.axes import save
from rainbow_fast.plots.gaps import GapCurve, GapPanel, gap_panels
from rainbow_fast.random_networks.chain_layer import NORMALISERS, ORDERS, RandomLayer
from rainbow_fast.random_networks.chains import ChainResult, weight_chain
from rainbow_fast.random_networks.gram_chain import gram_chain

STARTS = ("collapsed", "random", "orthogonal")
NEARLY = 1e-6  # of the samples but the first, at a collapsed start
MOST_WIDTHS = 6  # curves of a figure


@flowing
def chain(
    widths: Annotated[str, typer.Argument(help="Width of all layers; or several widths, separated by commas.")],
    layers: Annotated[int, typer.Option(help="Number of layers.")] = 50,
    samples: Annotated[int, typer.Option(help="Number of samples in the batch.")] = 4,
    runs: Annotated[int, typer.Option(help="Number of independent networks of each width.")] = 20,
    start: Annotated[
        str, typer.Option(help="First batch: collapsed (nearly of rank one), random (Gaussian), or orthogonal.")
    ] = "collapsed",
    activation: Annotated[str, typer.Option(help=f"One of {', '.join(ACTIVATIONS)}.")] = "identity",
    norm: Annotated[str, typer.Option(help=f"One of {', '.join(NORMALISERS)}.")] = "batch",
    order: Annotated[str, typer.Option(help=f"One of {', '.join(ORDERS)}.")] = ORDERS[0],
    gain: Annotated[float, typer.Option(help="Factor of the weights.")] = 1.0,
    explicit: Annotated[
        bool, typer.Option("--explicit", help="Multiply by weights, in float32, in the place of their exact law.")
    ] = False,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    out: Annotated[Path | None, typer.Option(help=f"{OUT} No files are written by default.")] = None,
) -> None:
    """Follow a batch through the layers of random networks, and compare its orthogonality with theory.

    A table is printed: the orthogonality gap, the effective rank and the mean cosine after the last layer, means over
    networks. The folder of the results holds all layers (chain.json) and a figure of the gaps (chain.png).
    """
    set_threads({"threads": threads})
    each = [int(width) for width in numbers("--widths", widths)]
    if len(each) > MOST_WIDTHS:
        raise ValueError(f"widths: wanted at most {MOST_WIDTHS}, got {len(each)}")
    layer = RandomLayer(activation, norm, order, gain)
    first = _start(one_of("start", start, STARTS), integer("samples", samples, 2), seed)
    if out is not None:
        need_plots()
        check_folder(out)
    simulate = weight_chain if explicit else gram_chain
    with terminal.bar(1) as bar, bar.job(1, "chains") as step:
        result = simulate(
            first.float() if explicit else first, layers, width=each, layer=layer, runs=runs, seed=seed,
            progress=as_progress(step),
        )  # fmt: skip
    text = dumps(_record(result) | {"samples": samples, "runs": runs, "start": start, "seed": seed})
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "chain.json", text + "\n")
        save(gap_panels(_panels(result), title=_title(result)), out / "chain.png")
    if as_json:
        terminal.out().print(text, markup=False, soft_wrap=True)
        return
    columns = ("width", "gap", "sd", "theory", "effective rank", "mean cosine")
    terminal.print_columns(_title(result), columns, _rows(result))
    if out is not None:
        terminal.out().print(f"{out}: chain.json, chain.png", markup=False, soft_wrap=True)


def _start(kind: str, samples: int, seed: int) -> Tensor:
    """The first batch, (samples, samples) float64."""
    if kind == "random":
        return gaussian(samples, samples, seed=seed, stream=2**32 - 1, dtype=torch.float64)
    sizes = torch.ones(samples, dtype=torch.float64, device="cpu")
    sizes[1:] = NEARLY if kind == "collapsed" else 1
    return sizes.diag()


def _record(result: ChainResult) -> dict[str, object]:
    """Means over runs of all measures by width and layer, and the columns of theory."""
    measures = {name: getattr(result, name).mean(1).tolist() for name in ("orthogonality_gap", "effective_rank")}
    return {
        "widths": result.width,
        "layers": result.layers.tolist(),
        "layer": {name: getattr(result.layer, name) for name in ("activation", "normaliser", "order", "gain")},
        "mean_cosine": result.mean_cosine.mean(1).tolist(),
        **measures,
        "theory": {name: column.tolist() for name, column in result.theory.items()},
    }


def _theory(result: ChainResult) -> Tensor | None:
    """What theory says of the gap of the last layer, (widths,)."""
    for name, column in result.theory.items():
        if name in ("stationary_gap", "collapsed_gap"):
            return column[:, -1]
        if name == "stationary_gap_squared" and "stationary_gap" not in result.theory:
            return column[:, -1].sqrt()
    return None


def _rows(result: ChainResult) -> list[tuple[str, ...]]:
    gaps, theory = result.orthogonality_gap[:, :, -1], _theory(result)
    rows: list[tuple[str, ...]] = []
    assert isinstance(result.width, list)
    for place, width in enumerate(result.width):
        spread = float(gaps[place].std()) if gaps.shape[1] > 1 else math.nan
        rank, cosine = (float(each[place, :, -1].mean()) for each in (result.effective_rank, result.mean_cosine))
        said = "" if theory is None else f"{float(theory[place]):.5f}"
        numbers = f"{float(gaps[place].mean()):.5f}", f"{spread:.1e}", said, f"{rank:.4f}", f"{cosine:.4f}"
        rows.append((str(width), *numbers))
    return rows


def _panels(result: ChainResult) -> list[GapPanel]:
    """The gap and the effective rank by layer, with the levels of theory."""
    ranks = result.theory["stationary_rank"][:, -1] if "stationary_rank" in result.theory else None
    theory = _theory(result)
    gaps = None if theory is None else theory.log10()
    return [
        _panel(result, "log10 of the orthogonality gap", result.orthogonality_gap.log10(), gaps),
        _panel(result, "effective rank", result.effective_rank, ranks),
    ]


def _panel(result: ChainResult, label: str, values: Tensor, theory: Tensor | None) -> GapPanel:
    assert isinstance(result.width, list)
    layers = result.layers.tolist()
    curves = [GapCurve(f"width {width}", layers, values[place].numpy()) for place, width in enumerate(result.width)]
    levels = {} if theory is None else dict(zip((f"theory, {w}" for w in result.width), theory.tolist(), strict=True))
    return GapPanel("", "layer", label, curves, levels)


def _title(result: ChainResult) -> str:
    layer = result.layer
    return f"{layer.activation}, norm {layer.normaliser}, {layer.order}, {int(result.layers[-1])} layers"
