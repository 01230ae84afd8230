# SPDX-License-Identifier: BSD-3-Clause
"""Writes the table of one run into docs/benchmarks.md, in the section of this CPU's vendor."""

import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

VENDORS = ("AMD", "Intel")


def write_run(page: Path, cpu: str, machine: str, table: Sequence[str]) -> None:
    """Replace the section of the CPU's vendor by this run: date, commit, machine and table.

    Raises:
        ValueError: the CPU is of another vendor, or the page has no section for its vendor.
    """
    vendor = next((name for name in VENDORS if name in cpu), None)
    if vendor is None:
        raise ValueError(f"cpu: {cpu!r} is of another vendor, wanted one of {', '.join(VENDORS)}")
    section = re.compile(rf"(<!-- begin {vendor} -->\n).*?(<!-- end {vendor} -->)", re.DOTALL)
    text = page.read_text()
    if not section.search(text):
        raise ValueError(f"page: {page} has no section for {vendor}")
    lines = [f"One run, {datetime.now(UTC):%Y-%m-%d}, commit {_commit(page.parent)}. {machine}.", "", *table]
    page.write_text(section.sub(lambda m: m[1] + "\n".join(lines) + "\n" + m[2], text))


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
