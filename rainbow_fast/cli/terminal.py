# SPDX-License-Identifier: BSD-3-Clause
"""The output of commands in a terminal: a progress bar, tables, and warnings in one line each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from rainbow_fast.cli.grid import Step
from rainbow_fast.cli.planning import CostGrid
from rainbow_fast.rainbow.report import Record
from rainbow_fast.rainbow.summaries import summaries
from rainbow_fast.tables import duration, one_line, quantity


def out() -> Console:
    """The console for results, on stdout."""
    return Console(highlight=False)


def err() -> Console:
    """The console for everything else, on stderr."""
    return Console(stderr=True, highlight=False)


class Bar:
    """A progress bar over jobs of unequal cost; each job takes a part of the bar in proportion to its cost."""

    def __init__(self, progress: Progress, total: float) -> None:
        self.progress, self.done = progress, 0.0
        self.task = progress.add_task("", total=total)

    @contextmanager
    def job(self, cost: float, name: str) -> Iterator[Step]:
        def step(share: float, what: str) -> None:
            self.progress.update(self.task, completed=self.done + cost * share, description=f"{name}: {what}")

        self.progress.update(self.task, description=name)
        yield step
        self.done += cost
        self.progress.update(self.task, completed=self.done)


@contextmanager
def bar(total: float) -> Iterator[Bar]:
    """A context with a progress bar that shows the time left. It appears only in a terminal and vanishes at the end."""
    console = err()
    one_line = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    text = TextColumn("{task.description}", markup=False, table_column=one_line)
    columns = (text, BarColumn(24), TaskProgressColumn(), TimeRemainingColumn(compact=True))
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, expand=True, disable=hidden) as progress:
        yield Bar(progress, total)


@contextmanager
def warned() -> Iterator[None]:
    """A context that collects warnings and prints each of them once at the end, in one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            told = [
                w.message for w in caught if not issubclass(w.category, DeprecationWarning)
            ]  # DeprecationWarning is for developers
            for message in dict.fromkeys(map(str, told)):
                err().print(f"[yellow]Warning:[/] {escape(one_line(message))}", soft_wrap=True)


def print_summary(records: Iterable[Record], title: str) -> None:
    """Print accuracy and held-out errors by method and width: mean and standard deviation over networks."""
    rows = summaries(records)
    all_sites = list(dict.fromkeys(site for row in rows for site in row.errors))
    sites = all_sites if len(all_sites) < 3 else [all_sites[0], all_sites[-1]]
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    table.add_column("method", no_wrap=True)
    errors_at = [f"error at\n{site.replace('.', '.' + chr(10))}" for site in sites]  # long names get several lines
    for heading in ("width", "net-\nworks", "accuracy\n%", *errors_at):
        table.add_column(escape(heading), justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous not in (None, row.method):
            table.add_section()
        name = "" if row.method == previous else row.method
        errors = [mean_and_deviation(*row.errors[site], digits=3) if site in row.errors else "-" for site in sites]
        percent = (
            "-"
            if math.isnan(row.accuracy[0])
            else mean_and_deviation(*(100 * value for value in row.accuracy), digits=1)
        )
        table.add_row(escape(name), f"x{row.factor:g}", str(row.networks), percent, *errors)
        previous = row.method
    out().print(table)
    if len(sites) < len(all_sites):
        out().print(f"the first and the last of {len(all_sites)} sites; report.txt has them all", markup=False)


def print_costs(grid: CostGrid) -> None:
    """Print the cost of each site for one network of each method and width, and the cost of all networks."""
    table = Table(title=escape(grid.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    table.add_column("network")
    for heading in ("site", "n", "flops", "in\nflight", "float64", "on\ndisk", "peak", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for job, cost in grid.costs:
        name = f"{cost.method} {job.width}"
        for site in cost.sites:
            numbers = [site.in_flight_bytes, site.float64_bytes, site.disk_bytes, site.peak_bytes]
            cells = [quantity(number) for number in (sum(work.flops for work in site.work.values()), *numbers)]
            table.add_row(escape(name), escape(site.site), str(site.n), *cells, duration(site.seconds(cost.machine)))
            name = ""
        flops, disk, peak = (quantity(number) for number in (cost.flops, cost.disk_bytes, cost.peak_bytes))
        table.add_row("", "all", "", flops, "", "", disk, peak, duration(cost.seconds), style="bold", end_section=True)
    out().print(table)
    networks, threads = sum(grid.count(job) for job, _ in grid.costs), torch.get_num_threads()
    out().print(
        f"{networks} network{'s' * (networks > 1)}, fitted once: {duration(grid.seconds)} s with {threads} "
        f"thread{'s' * (threads > 1)}; {quantity(grid.peak_bytes)}B at the peak, with the data"
    )
    together = f"up to {grid.together} networks of a method together" if grid.together > 1 else "one at a time"
    out().print(f"{together}; {grid.storage}")


def print_columns(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose columns are aligned to the right."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(escape(heading), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    out().print(table)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and their values, one pair on each line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in pairs:
        table.add_row(escape(name), escape(value))
    out().print(table)


def mean_and_deviation(mean: float, deviation: float, *, digits: int) -> str:
    """The mean and standard deviation as text; only the value if there is one."""
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")
