# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.random_chains` as a page with a table."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.random_chains.chain_figure import Panel, present

INTRODUCTION = """\
# Random chains

    python -m studies.random_chains cifar-10-batches-bin

![Measurements and theory, panel by panel](random_chains.png)

A random chain sends n samples through layer after layer of fresh Gaussian weights, of width d. V is the orthogonality
gap: 0 for orthogonal samples of equal length, `sqrt(1 - 1/n)` for parallel ones. Batch norm is the analysed one, which
scales each unit to length 1 over the samples, unless a panel says otherwise. The panels are the figures of the papers
on networks that are not trained, and four more. Only figures 5a and 5b on images read data.

Points are measured, bands are one standard deviation over runs. Black lines are theory, dashed grey lines are limits
or coarser theory. Theory is computed without sampling, except in figure 1 and in figure 5a on images.

"""
PANELS: dict[str, Panel] = {
    "1": Panel(
        "Figure 1: two samples, width 32",
        "layer",
        "mean |cos|",
        "Without a norm two orthogonal samples become parallel, and with batch norm two almost parallel samples become "
        "almost orthogonal. Points are {runs:,} networks with explicit weights. Lines are the exact laws without "
        "weights (50,000 runs of the recursion of an angle, 20,000 of the Gram matrix). The dashed line is the mean "
        "field of infinite width until its stationary level; width 32 lags behind it, because few units tell "
        "the samples apart.",
    ),
    "2a": Panel(
        "Figure 2a: collapsed start, n = 4",
        "layer",
        "mean log V",
        "The gap of almost parallel samples stays for some layers, falls geometrically, and stops at a level of order "
        "`d^(-1/2)` (dashed). The line is the root of the sum of squares of the mean field and this level. It "
        "falls too early, as in figure 1: at these widths the units that tell such samples apart are few.",
    ),
    "2b": Panel(
        "Figure 2b: average over layers, n = 4",
        "log width",
        "log of mean V",
        "The published slope of -0.46 comes from the first layers after a collapsed start, which count in the average "
        "over all layers; after a burn-in of 50 layers the slope is -1/2. The lines average the theory of figure 2a, "
        "and its stationary level.",
    ),
    "5a, images": Panel(
        "Figure 5a: perceptrons, 8 images",
        "layer (1: image)",
        "V",
        "Torch's batch norm (centred) keeps the gap small, and without a norm samples become parallel. The points are "
        "means over {batches} batches of 8 images of CIFAR-10 in {runs} networks of width {width}, the line the exact "
        "law without weights from the same images. The images are normalised by the constants of MNIST and pass a ReLU "
        "before the first weights, as in the published code; a block is ReLU, weights, norm. The published figure "
        "has one network: with batch norm its values are those here, and without a norm its .89 at layer 10 and .93 "
        "at layer 30 lie little more than one standard deviation of networks above their mean. Dashed: the level of a "
        "centred linear chain, and the largest gap.",
    ),
    "5b": Panel(
        "Figure 5b: convolutions, reflected",
        "layer (1: image)",
        "V",
        "The same for convolutions of 3 x 3 with {width} channels and Xavier's weights of gain 1, padded by reflection "
        "as in the published code. Runs are {batches} batches in each of {conv_nets} networks. Without a norm the gap "
        "follows the kernel of infinitely many channels (line), which rises towards the largest value (dashed) so "
        "slowly that 30 layers do not reach it. The published claim that batch norm stabilises the gap holds only for "
        "the first layers: later the gap grows again. The samples do become orthogonal, as their gap at length 1 "
        "shows, but their lengths drift apart: batch norm of maps normalises over positions and samples together, and "
        "so does not hold the length of a sample.",
    ),
    "5b, zeros": Panel(
        "Figure 5b: convolutions, zeros",
        "layer (1: image)",
        "V",
        "The same with the zeros around the maps of which the published caption speaks. It changes little.",
    ),
    "5a": Panel(
        "Figure 5a without data, n = 8, width 100",
        "layer",
        "V",
        "Perceptrons without data. The start is synthetic with V = 0.7, so only the levels compare with the published "
        "ones. "
        "Dashed: the level .199 of a centred linear chain, and the largest gap .935. Dotted: the level .191 of ReLU "
        "from the simulation below.",
    ),
    "6": Panel(
        "Figure 6: activations, n = 4",
        "log width",
        "log of mean |K - E K|",
        "The Gram matrix K concentrates at about `d^(-1/2)` for every activation, but the published claim that the "
        "activations hardly differ does not hold: the published figure shows one of them four times. The line is the "
        "closed form for the identity, which odd activations approach.",
        theory="theory, identity",
    ),
    "ICLR 1": Panel(
        "ICLR 2024, figure 1: Haar weights",
        "layer",
        "mean log isometry gap",
        "With orthogonal weights and batch norm the isometry gap phi falls geometrically, by d/(d+2) a layer. Dashed: "
        "the published curve phi_0 exp(-l / (.015 d^2 (1 + d phi_0))).",
        limit="published curve",
    ),
    "ranks": Panel(
        "Many samples, width 1024",
        "samples n",
        "effective rank",
        "The effective rank r follows `1/r = 1/n + n/(4d)`, and from `n = 2 sqrt d` on it stays at `sqrt d` (dashed).",
    ),
    "features": Panel(
        "One layer of random features",
        "eigenvalue",
        "density",
        "The histogram of the eigenvalues of the Gram matrix of 600 features of ReLU, 300 samples of 150 units, "
        "follows the limiting density; one large eigenvalue in 300, that of the mean direction, lies outside.",
    ),
    "wide": Panel(
        "Explicit weights, width {width:,}",
        "layer",
        "log V",
        "One chain with explicit weights of width {width:,} and n = 4 follows theory and the law without "
        "weights. Its weights are generated inside the product and never stored: a layer would take {gigabytes:.3g} GB "
        "in the float64 of the published code. It took {seconds:g} s of CPU time for {depth} layers, the first "
        "from 4 units, and a run without weights {short:g} s.",
    ),
}
COLUMNS = ("panel", "number", "measured", "theory")
TABLE = """\
## Numbers

*Expected* is what a correct implementation gives: numbers of a separate simulation in NumPy, which shares no code with
this library, to about one unit of the last digit or 0.01; for figure 5a on images it is read off the published figure,
to 0.02. *Measured* has one standard error over runs; runs of convolutions are networks. Theory is to first order in
n/d, except for figure 1, the orthogonal weights, the features and images; for figure 6 it is the slope of every
activation. Without a norm, theory of figure 5a without data is the limit of many layers. On images theory is the law of
networks of this width, and for convolutions that of infinitely many channels. For the features, the simulation had
another input, for which theory is 3.0740 and .7026.

"""
EXPECTED = {
    "batch norm, mean of layers 15 to 50": ".117",
    "no norm, layer 49": ".713",
    "no norm, mean of log sin at layer 50": "-.8195",
    "log V at width 32, layers 30 to 50": "-1.623",
    "log V at width 512, layers 30 to 50": "-3.027",
    "all layers, value at width 512": "-2.801",
    "all layers, slope": "-.468",
    "after burn-in, slope": "-.50 ± .01",
    "batch norm on images, layer 2": ".29",
    "batch norm on images, layer 3": ".235",
    "batch norm on images, layer 5": ".20",
    "batch norm on images, layer 30": ".19",
    "batch norm, layer 10 to 31": ".191",
    "no norm, layer 30": ".914",
    "tanh + 1, value at width 256": "-3.227",
    "tanh + 1, slope": "-.457",
    "tanh + 1, mean cosine at width 256": ".791",
    "ReLU, value at width 256": "-2.604",
    "ReLU, slope": "-.530",
    "ReLU, mean cosine at width 256": ".291",
    "tanh, value at width 256": "-2.637",
    "tanh, slope": "-.514",
    "tanh, mean cosine at width 256": "0",
    "sin, value at width 256": "-2.645",
    "sin, slope": "-.513",
    "sin, mean cosine at width 256": "0",
    "identity, value at width 256": "-2.640",
    "identity, slope": "-.512",
    "identity, mean cosine at width 256": "0",
    "n = d = 50, slope of log gap per layer, layers 20 to 100": "-.0392",
    "n = d = 100, slope of log gap per layer, layers 20 to 100": "-.0198",
    "effective rank, n = 16": "14.96",
    "effective rank, n = 32": "25.12",
    "effective rank, n = 64": "31.26",
    "effective rank, n = 128": "31.55",
    "mean of 1 / (eigenvalue + 0.1)": "3.086 ± .006",
    "mean of 1 / (eigenvalue + 1)": ".7025 ± .0003",
}


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    records = [record for record in records if record["panel"] in PANELS]
    rows = [row(record) for record in records if "number" in record]
    table = markdown([*COLUMNS, "expected"], [[*cells, EXPECTED.get(cells[1], "-")] for cells in rows])
    return "\n".join([INTRODUCTION + "## Panels\n", *sentences(records, PANELS), "", TABLE + table])


def sentences(records: Sequence[Record], panels: Mapping[str, Panel]) -> list[str]:
    """An item of a list for each panel that has records."""
    lines = []
    for name, panel in present(records, panels).items():
        first = next(record for record in records if record["panel"] == name and "curve" in record)
        words = first["setting"] | first
        if name == "wide":
            words["gigabytes"] = 8 * first["width"] ** 2 / 1e9
        lines.append(_wrapped(f"- *{panel.title}.* {panel.sentence}".format(**words)))
    return lines


def row(record: Record) -> list[str]:
    """The cells of a number: `COLUMNS`."""
    error, theory = record["error"], record["theory"]
    measured = _digits(record["mean"]) + ("" if error is None else f" ± {error:.1g}")
    return [record["panel"], record["number"], measured, "-" if theory is None else _digits(theory)]


def _digits(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _wrapped(text: str) -> str:
    """Lines of at most 120 letters, indented as an item of a list."""
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
