# SPDX-License-Identifier: BSD-3-Clause
"""The page of the study: totals, and one line for each architecture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.breadth.identity import LARGE_IMAGE, LIMITS, OF_LARGE_IMAGES, OF_TRANSFORMERS, SAMPLES, SMALL

GATE, OUTPUT = "a gate, not named", "an output activation, not named"


def page(records: Sequence[Record]) -> str:
    """The page in Markdown."""
    about, rows = records[0]["about"], [row for row in records[1:] if "library" in row]
    batches = [row for row in records[1:] if "batch" in row]
    versions = ", ".join(f"{name} {version}" for name, version in about.items())
    traced = [row for row in rows if "error" not in row]
    total, sampled = sum(row["sites"] for row in traced), sum(map(_sampled, traced))
    gates = sum(row["kept"].get(GATE, 0) for row in traced)
    others = total - gates - sum(row["kept"].get(OUTPUT, 0) for row in traced)
    graphs = sum(row["route"] == "graph" for row in traced)
    reasons: Counter[str] = Counter()
    for row in traced:
        reasons.update(row["kept"])
    lines = [
        "# Public architectures",
        "",
        "    python -m studies.breadth",
        "",
        f"{len(rows)} architectures with random weights, from {versions}.",
        "Those of transformers have small configurations. For each one, `rf.sites` lists the non-linearities that",
        "depend on the input: those that are sampled, and the others with their reason.",
        "",
        f"- {len(traced)} of {len(rows)} are traced, {graphs} of them as a graph.",
        f"- {sampled:,} of {total:,} non-linearities are sampled. {gates:,} are gates.",
        f"- Of those that are neither gates nor outputs, {100 * sampled / others:.1f} % are sampled.",
        "",
        markdown(["reason", "non-linearities"], [[reason, f"{n:,}"] for reason, n in reasons.most_common()]),
        "",
        *_of_batches(batches),
        *_control(rows),
        "## All architectures",
        "",
        "The columns float32 and float64 are the distances with the reference's own neurons. Other reasons than those",
        "of gates and outputs are in the last column.",
        "",
    ]
    heading = ["library", "architecture", "input", "route", "non-linearities", "sampled", "gates", *LIMITS]
    return "\n".join([*lines, markdown([*heading, "other reasons"], [_cells(row) for row in rows])])


def _of_batches(rows: Sequence[Record]) -> list[str]:
    """The section on batches of transformers; empty if there are no records of them."""
    if not rows:
        return []
    heading = [
        "network",
        "inputs",
        "non-linearities",
        "sampled",
        "positions that count",
        "samples",
        "identity",
        "plain",
    ]
    cells = []
    for row in rows:
        positions = ("", "") if row["positions"] is None else (str(row["positions"]), str(row["counted"]))
        numbers = row["batch"], row["inputs"], str(row["sites"]), str(row["sampled"]), *positions
        cells.append([*numbers, f"{row['identity']:.1e}", f"{row['materialize']:.1e}"])
    return [
        "## Batches of transformers",
        "",
        "Networks as they come, on dicts as tokenizers and collators make them, with padded texts. *samples* is the",
        "number of samples of a site with as many positions as tokens: padded ones are left out. *identity* is the",
        "distance to the reference with the reference's own neurons; *plain* that between a network twice as wide and",
        "what `materialize()` makes of it. Both are in float32, relative to the largest output.",
        "",
        markdown(heading, cells),
        "",
    ]


def _control(rows: Sequence[Record]) -> list[str]:
    """The section on the control experiment; empty if no record has it."""
    tried = [row for row in rows if "identity" in row and "error" not in row and _sampled(row)]
    measured = [row for row in tried if "error" not in row["identity"]]
    if not measured:
        return []
    spread = {
        key: sorted(_of(row, key) for row in measured if key in row["identity"]) for key in ("rounding", "gaussian")
    }
    lines = [
        "## The reference's own neurons",
        "",
        "    python -m studies.breadth --identity",
        "",
        "With the law `identity` the sampled neurons are the reference's own, and the network must give the outputs",
        f"of the reference. Here all sites are sampled, with `center=True, offset=True`, on {SAMPLES} samples, or on",
        f"{OF_LARGE_IMAGES} images of more than {LARGE_IMAGE} pixels, or on {OF_TRANSFORMERS} samples for",
        "transformers. Before that, constant weights, such as scales of layers, become random between 1/4 and 3/4, and",
        "each batch norm divides by the root mean square of its inputs: all layers then have a share in the outputs.",
        "A batch norm directly after a non-linearity has the mean and the variance of its inputs, as in a sample.",
        "A distance is the largest difference on these samples, divided by the largest output.",
        "",
    ]
    if len(tried) < sum(bool(_sampled(row)) for row in rows if "error" not in row):
        lines += [f"So far, {len(tried)} of the {len(rows)} architectures have been measured.", ""]
    for dtype, limit in LIMITS.items():
        within = sum(_of(row, dtype) <= limit for row in measured)
        last = max(measured, key=lambda row: _of(row, dtype))
        largest = f"The largest distance is {_of(last, dtype):.1e} ({last['library']} {last['name']})."
        lines.append(f"- {dtype}: {within} of {len(tried)} are within {limit:.0e}. {largest}")
    for key, what in (
        (
            "rounding",
            "If each weight of a reference changes by one unit in the last place of float32, its outputs move by",
        ),
        (
            "gaussian",
            f"With the law `gaussian`, networks of at most {SMALL:,} parameters are at distances in float32 of",
        ),
    ):
        if values := spread[key]:
            lines.append(f"- {what} {values[0]:.1e} to {values[-1]:.1e}, {median(values):.1e} in the middle.")
    some = [f"{row['name']} ({row['identity']['of']})" for row in measured if "of" in row["identity"]]
    if some:
        lines.append(f"- Because of memory, float64 samples only some sites of {', '.join(some)}.")
    if none := sum("error" in row or not _sampled(row) for row in rows):
        lines.append(f"- {none} of {len(rows)} have no non-linearity that is sampled.")
    beyond = [row for row in tried if any(_of(row, dtype) > limit for dtype, limit in LIMITS.items())]
    if beyond:
        heading = ["library", "beyond a limit", *LIMITS, "weights changed, float32"]
        cells = [[row["library"], row["name"], *(_shown(row, key) for key in (*LIMITS, "rounding"))] for row in beyond]
        lines += ["", markdown(heading, cells)]
    return [*lines, ""]


def _of(row: Record, key: str) -> float:
    return row["identity"].get(key, math.inf)


def _shown(row: Record, key: str) -> str:
    distance = row.get("identity", {}).get(key)
    return "" if distance is None else f"{distance:.1e}"


def _sampled(row: Record) -> int:
    return row["sites"] - sum(row["kept"].values())


def _cells(row: Record) -> list[str]:
    start = [row["library"], row["name"], row["shape"]]
    if "error" in row:
        return [*start, "refused", "", "", "", "", "", row["error"]]
    others = [f"{n}: {reason}" for reason, n in row["kept"].items() if reason != GATE]
    counts = row["sites"], _sampled(row), row["kept"].get(GATE, 0)
    distances = (_shown(row, dtype) for dtype in LIMITS)
    return [*start, row["route"], *map(str, counts), *distances, "; ".join(others)]
