# SPDX-License-Identifier: BSD-3-Clause
"""The drawing of the floors: the rooms of the package, drawn from its imports whenever the site is built.

python docs/architecture.py          the floors of rainbow_fast, as text
<!-- floors rainbow_fast/rainbow --> in a page: the drawing and the table of that folder
"""

from __future__ import annotations

import ast
import html
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLACE = re.compile(r"<!-- floors ([\w/]+) -->")
WIDTH, BOX, ROW, GAP, LETTER, MARGIN = 760, 30, 78, 16, 7.4, 60  # of the drawing, in pixels


@dataclass
class Room:
    """A file or a folder of a package.

    Attributes:
        name: of the folder, or of the file without its suffix.
        about: the first paragraph of its docstring.
        imports: names of the other rooms of the package that it imports.
        floor: 0 if it imports none, else one above the highest room that it imports.
    """

    name: str
    about: str
    imports: set[str] = field(default_factory=set)
    floor: int = 0


def rooms(package: Path, root: Path = ROOT) -> list[Room]:
    """The rooms of a package, from the ground up, each with the other rooms that it imports.

    Args:
        package: the folder; its own `__init__.py` is no room.
        root: the folder in which the name of the package begins.
    """
    prefix = ".".join(package.relative_to(root).parts)
    every: dict[str, Room] = {}
    for path in sorted(package.iterdir()):
        if path.suffix == ".py" and path.stem != "__init__":
            every[path.stem] = Room(path.stem, _about(path))
        elif (path / "__init__.py").is_file():
            every[path.name] = Room(path.name, _about(path / "__init__.py"))
    for room in every.values():
        folder = package / room.name
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
            for target in _imports(path, root):
                inner = target.removeprefix(f"{prefix}.").split(".")[0]
                if target.startswith(f"{prefix}.") and inner in every and inner != room.name:
                    room.imports.add(inner)
    for _ in every:  # as often as the longest chain can have rooms
        for room in every.values():
            room.floor = max((every[name].floor + 1 for name in room.imports), default=0)
    return sorted(every.values(), key=lambda room: (room.floor, room.name))


def _row_width(names: list[str]) -> float:
    """The width of a floor in pixels: its boxes and the gaps between them."""
    return sum(len(name) * LETTER + 2 * GAP for name in names) + GAP * (len(names) - 1)


def drawing(every: list[Room]) -> str:
    """An SVG with a row for each floor, and an arrow from a room to each import that it reaches by no other way."""
    by_name = {room.name: room for room in every}
    highest = max(room.floor for room in every)
    rows = [[room.name for room in every if room.floor == floor] for floor in range(highest + 1)]
    width_of_drawing = max(WIDTH, MARGIN + max(map(_row_width, rows)) + 2)
    centres: dict[str, tuple[float, float]] = {}
    boxes, labels = [], []
    for floor, row in enumerate(rows):
        y = (highest - floor) * ROW + BOX
        labels.append(f'<text class="floor" x="0" y="{y + 4}">floor {floor}</text>')
        widths = [len(name) * LETTER + 2 * GAP for name in row]
        x = MARGIN + (width_of_drawing - MARGIN - _row_width(row)) / 2
        for name, width in zip(row, widths, strict=True):
            centres[name] = (x + width / 2, y)
            boxes.append(
                f'<rect x="{x:.1f}" y="{y - BOX / 2}" width="{width:.1f}" height="{BOX}" rx="6"/>'
                f'<text x="{x + width / 2:.1f}" y="{y + 4}" text-anchor="middle">{html.escape(name)}</text>'
            )
            x += width + GAP
    arrows = []
    for room in every:
        for target in sorted(room.imports - _reached_otherwise(room, by_name)):
            (x1, y1), (x2, y2) = centres[room.name], centres[target]
            y1, y2 = y1 + BOX / 2, y2 - BOX / 2
            middle = (y1 + y2) / 2
            curve = f"M{x1:.1f},{y1} C{x1:.1f},{middle} {x2:.1f},{middle} {x2:.1f},{y2}"
            arrows.append(f'<path marker-end="url(#arrow)" d="{curve}"/>')
    height = highest * ROW + 2 * BOX
    marker = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z"/></marker></defs>'
    )
    body = "".join([marker, *arrows, *boxes, *labels])
    return f'<svg role="img" aria-label="Floors" viewBox="0 0 {width_of_drawing:.0f} {height}">{body}</svg>'


def table(every: list[Room]) -> str:
    """An HTML table of the rooms, from the top down: the content of each, and what it imports."""
    rows = [
        f"<tr><td>{room.floor}</td><td><code>{html.escape(room.name)}</code></td><td>{html.escape(room.about)}</td>"
        f"<td>{', '.join(f'<code>{html.escape(name)}</code>' for name in sorted(room.imports)) or 'nothing'}</td></tr>"
        for room in reversed(every)
    ]
    head = "<tr><th>floor</th><th>room</th><th>what it holds</th><th>imports</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with each page: puts the drawings in their places."""

    def drawn(match: re.Match[str]) -> str:
        every = rooms(ROOT / match[1])
        return f'<div class="floors">{drawing(every)}\n{table(every)}</div>'

    return PLACE.sub(drawn, content)


def _about(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("`", "")


def _imports(path: Path, root: Path) -> set[str]:
    """The full names of everything that a file imports: modules, or modules followed by a name in them."""
    parts = path.relative_to(root).with_suffix("").parts
    package = parts[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = [*base, *(node.module.split(".") if node.module else [])]
            names.update(".".join([*source, alias.name]) for alias in node.names)
    return names


def _reached_otherwise(room: Room, by_name: dict[str, Room]) -> set[str]:
    """The rooms that are imported by any room that this room imports, directly or indirectly."""
    reached: set[str] = set()
    waiting = [name for target in room.imports for name in by_name[target].imports]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += by_name[name].imports
    return reached


if __name__ == "__main__":
    for room in reversed(rooms(ROOT / "rainbow_fast")):
        print(f"{room.floor}  {room.name:16} {', '.join(sorted(room.imports))}")
