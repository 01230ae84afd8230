# SPDX-License-Identifier: BSD-3-Clause
"""The drawing of the floors agrees with the imports: it has all rooms, and no arrow goes up."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from here import ROOT


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("floors", ROOT / "docs/architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["floors"] = module  # dataclasses look up the names of their types there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", ["rainbow_fast", "rainbow_fast/rainbow"])
def test_every_room_is_named(architecture: ModuleType, package: str) -> None:
    folder = ROOT / package
    wanted = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    wanted |= {path.parent.name for path in folder.glob("*/__init__.py")}
    page = architecture.on_page_content(f"<p>before</p>\n<!-- floors {package} -->\n<p>after</p>")
    picture, _, table = page.partition("</svg>")
    assert set(re.findall(r'text-anchor="middle">(\w+)<', picture)) == wanted
    assert set(re.findall(r"<tr><td>\d+</td><td><code>(\w+)</code>", table)) == wanted
    assert page.startswith("<p>before</p>") and page.endswith("<p>after</p>")


def test_imports_are_those_of_the_house(architecture: ModuleType) -> None:
    from test_house import imports, room

    drawn = {one.name: one.imports for one in architecture.rooms(ROOT / "rainbow_fast")}
    wanted: dict[str, set[str]] = {name: set() for name in drawn}
    for module, targets in imports(ROOT).items():
        if room(module):
            wanted[room(module)] |= {room(target) for target in targets} - {room(module), "", "_C"}
    assert drawn == wanted


def test_toy_package(architecture: ModuleType, tmp_path: Path) -> None:
    files = {
        "__init__": '"""The package."""',
        "ground": '"""Ground."""\nimport os',
        "wall/__init__": '"""Wall of\n`bricks`.\n\nMore."""',
        "wall/brick": "from .. import ground",
        "roof": "def late():\n    from toy.wall.brick import lay\n    import toy.ground as g",
    }
    for name, text in files.items():
        path = tmp_path / "toy" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    rooms = architecture.rooms(tmp_path / "toy", tmp_path)
    assert [(room.name, room.floor, room.imports) for room in rooms] == [
        ("ground", 0, set()),
        ("wall", 1, {"ground"}),
        ("roof", 2, {"wall", "ground"}),
    ]
    assert rooms[1].about == "Wall of bricks."
    # roof imports ground through wall: two arrows, which both go down
    arrows = re.findall(r'marker-end.*?d="M[\d.]+,([\d.]+) .*?,([\d.]+)"', architecture.drawing(rooms))
    assert len(arrows) == 2 and all(float(start) < float(end) for start, end in arrows)
