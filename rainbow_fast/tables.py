# SPDX-License-Identifier: BSD-3-Clause
"""Tables as text, Markdown and HTML, numbers as short text, and texts in one line."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal obeys, but for tabs and new lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line of text for each row, with columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def one_line(text: str) -> str:
    """A text of one or more lines in one line. Characters that a terminal would obey are shown, not written."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], " ".join(text.split()))


def cell(value: object) -> str:
    """A value as text: floats with four digits, None as a dash."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def html_table(heading: Sequence[str], *rows: Sequence[str]) -> str:
    """A table in HTML, without styles. The text of cells is escaped."""
    lines = [_html_row("th", heading), *(_html_row("td", row) for row in rows)]
    return f"<table><thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>"


def html_lines(lines: Sequence[str]) -> str:
    """A paragraph in HTML with escaped lines; an empty string if there are no lines."""
    return f"<p>{'<br>'.join(map(html.escape, lines))}</p>" if lines else ""


def quantity(value: float) -> str:
    """A number with three digits and a decimal prefix (k, M, G, T, P)."""
    power = min(max(math.floor(math.log10(value * 1.0005) / 3), 0), 5) if value > 0 else 0
    return f"{value / 1000**power:.3g} {'kMGTP'[power - 1] if power else ''}"


def duration(seconds: float) -> str:
    """A number of seconds with at least two digits, without an exponent."""
    return f"{seconds:.2g}" if 1e-4 < seconds < 10 else f"{seconds:.0f}"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(each)}</{tag}>" for each in cells) + "</tr>"
