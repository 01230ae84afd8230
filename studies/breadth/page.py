# SPDX-License-Identifier: BSD-3-Clause
"""The page of the study: totals, and one line for each architecture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown

GATE, OUTPUT = "a gate, not named", "an output activation, not named"


def page(records: Sequence[Record]) -> str:
    """The page in Markdown."""
    about, rows = records[0]["about"], records[1:]
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
        "## All architectures",
        "",
        "Other reasons than those of gates and outputs are in the last column.",
        "",
    ]
    heading = ["library", "architecture", "input", "route", "non-linearities", "sampled", "gates", "other reasons"]
    return "\n".join([*lines, markdown(heading, [_cells(row) for row in rows])])


def _sampled(row: Record) -> int:
    return row["sites"] - sum(row["kept"].values())


def _cells(row: Record) -> list[str]:
    start = [row["library"], row["name"], row["shape"]]
    if "error" in row:
        return [*start, "refused", "", "", "", row["error"]]
    others = [f"{n}: {reason}" for reason, n in row["kept"].items() if reason != GATE]
    counts = row["sites"], _sampled(row), row["kept"].get(GATE, 0)
    return [*start, row["route"], *map(str, counts), "; ".join(others)]
