# SPDX-License-Identifier: BSD-3-Clause
"""The part of the page of `python -m studies.random_chains` on figures that only a talk has shown."""

from __future__ import annotations

from collections.abc import Sequence

from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.random_chains.chain_figure import Panel
from studies.random_chains.chain_page import COLUMNS, row, sentences
from studies.random_chains.exponent_measurements import LAYERS, RUNS

SECTION = f"""\
## Figures of the talk

![Lyapunov exponents and distances to a Gaussian law](random_talk.png)

The talk "Representations in random deep neural networks" (Daneshmand, Joudaki and Bach, 2021) shows more figures than
the papers: Lyapunov exponents, distances to a Gaussian law, and the eigenvalues of random features (above). Their
curves are not transcribed, so nothing here can be matched with them by number; it is compared with theory.

*Exponents* are those of products of {LAYERS} square Gaussian matrices with variance 1/d, from {RUNS} runs with frames
(`lyapunov_estimate`). A *score* is the mean over runs less Newman's closed form, over the exact standard deviation
`sqrt(psi'((d-j+1)/2) / (4 * {LAYERS} * {RUNS}))` of that mean. Right estimates have independent scores of mean 0 and
variance 1. *W* is the Wasserstein-2 distance between the law of the next layer, before its norm, and the Gaussian law
with orthogonal samples (`gaussian_distance`). It is 0 for orthogonal samples of one length, and `sqrt(2 - 2/sqrt n)`
for parallel ones.

"""
NUMBERS = """\
### Numbers of these figures

*Measured* has one standard error over runs; for mean squares of scores it is the exact standard deviation of theory.
Theory of the largest score is its median. For singular values it is the number of exponents that are near enough to
the first one; without a norm, it is the law without weights. For distances with batch norm it is the stationary one, to
first order in n/d.

"""
TALK: dict[str, Panel] = {
    "exponents": Panel(
        "Lyapunov exponents",
        "(j - 1/2) / d",
        "exponent per layer",
        "The estimates lie on Newman's closed form at every width; bands are one standard deviation over runs. Wide "
        "layers approach `log(1 - j/d) / 2` (dashed), except for the last exponents, which stay finite.",
        limit="infinite width",
    ),
    "scores": Panel(
        "Errors of the exponents",
        "(j - 1/2) / d",
        "score",
        "The differences from theory are pure sampling: mean squares of scores are 1 within their errors, and the "
        "largest of all scores is one to be expected. The grey band holds 95 % of right scores.",
        most=200,
    ),
    "products": Panel(
        "Frames and SVD, width 32, 60 layers",
        "index j",
        "log per layer",
        "Frames give all exponents. The SVD of the same product in float64, scaled after every layer, loses those "
        "whose singular values are below round-off; theory says how many. The first singular values of a finite "
        "product differ from frames by more than sampling, as the limit of many layers is not reached.",
    ),
    "distances": Panel(
        "Distance to a Gaussian law, n = 4",
        "layer",
        "mean W",
        "With batch norm almost parallel samples come near to the Gaussian law, and stay at a distance that falls with "
        "the width; without a norm orthogonal samples leave it. Points are {runs} networks with explicit weights, "
        "lines the exact laws without weights (2,000 runs; 5,000 without a norm). Dashed: the mean field until the "
        "stationary level, and the distance of parallel samples.",
        theory="exact law",
        limit="limit",
    ),
    "distances by width": Panel(
        "Distance to a Gaussian law and width",
        "log width",
        "log W²",
        "The stationary distance follows `W² = (n-1)(n+2)²/(16(n+1)d)` in wide layers, and lies above it where n is "
        "not small against `sqrt d`. So W² is of order n²/d, far below the published bound, which exceeds the largest "
        "distance at all these widths. Without a norm the distance after 50 layers falls with the width too, but wider "
        "layers only delay the collapse.",
    ),
    "distances and gaps": Panel(
        "Distance and gap, n = 4",
        "V",
        "W",
        "One number tells the other: `W = sqrt(n) V / 2` (line) for small gaps, with batch norm and without, and "
        "always `W <= sqrt(n) V` (dashed). Points are all layers of four runs.",
        most=200,
        theory="small gaps",
        limit="bound",
    ),
}


def section(records: Sequence[Record]) -> str:
    """The text of the part of the page."""
    records = [record for record in records if record["panel"] in TALK]
    rows = [row(record) for record in records if "number" in record]
    return "\n".join([SECTION + "### Panels\n", *sentences(records, TALK), "", NUMBERS + markdown(COLUMNS, rows)])
