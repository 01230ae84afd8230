# SPDX-License-Identifier: BSD-3-Clause
"""Prints the table of all races at the end, instead of the one of pytest-benchmark."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from floor import KINDS
from machine import cpu, machine
from page import write_run
from race import Result, slower

RESULTS = pytest.StashKey[list[Result]]()
RATES = (*KINDS, "tf32", "copy")
HEAD = ("job", "candidate", "min ms", "median ms", "x plain", "x best", "error", "of floor")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-time", action="store_true", help="time one thread by its CPU time: for a busy machine")
    parser.addoption(
        "--page", type=Path, help="write the table into the section of this CPU in a page, docs/benchmarks.md"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    config.option.benchmark_quiet = True


@pytest.fixture
def record(pytestconfig: pytest.Config) -> Callable[[Result], None]:
    return pytestconfig.stash[RESULTS].append


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def table(results: list[Result]) -> list[str]:
    """A table in Markdown whose cells are padded to the width of their column."""
    rows = [HEAD]
    last = ""
    for r in results:
        best, median = (f"{1e3 * s:.2f}" if s < 1 else f"{1e3 * s:.0f}" for s in (r.best, r.median))
        share = f"{100 * r.share:.0f} %" if r.share else "-"
        to_best = f"{r.to_best:.2f}" if r.to_best else "-"
        job = r.job if r.job != last else ""
        error = "-" if math.isnan(r.error) else f"{r.error:.1e}"
        rows.append((job, r.name, best, median, f"{r.ratio:.2f}", to_best, error, share))
        last = r.job
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEAD))]
    lines = []
    for row in rows:
        cells = [row[k].ljust(w) if k < 2 else row[k].rjust(w) for k, w in enumerate(widths)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * w if k < 2 else "-" * (w - 1) + ":" for k, w in enumerate(widths)]
    return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = [r for r in config.stash[RESULTS] if max(r.seconds) > 0]
    if not results:
        return
    rates = {kind: max(r.rates.get(kind, 0.0) for r in results) / 1e9 for kind in RATES}
    head = f"{machine()}; best rates seen in this run: " + ", ".join(
        f"{kind} {rate:.0f} {'GB/s' if kind == 'copy' else 'GFlop/s'}" for kind, rate in rates.items() if rate
    )
    losses = slower(results)
    if not losses and any(r.to_best for r in results):
        losses = ["slower than the best plain torch: none of ours"]
    terminalreporter.section("rainbow_fast against plain torch and the published way")
    for line in (head, "", *table(results), "", *losses):
        terminalreporter.write_line(line)
    if config.option.page is not None:
        write_run(config.option.page, cpu(), head, [*table(results), "", *(f"- {line}" for line in losses)])
