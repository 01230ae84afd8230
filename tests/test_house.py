# SPDX-License-Identifier: BSD-3-Clause
"""The rules of the house: imports only go down, without circles, and an op has its file in every room."""

import ast
import graphlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from here import ROOT

FLOORS = {
    **dict.fromkeys(["arguments", "backend", "io", "maps", "progress", "tables", "version"], 0),
    **dict.fromkeys(["fields", "scratch", "triton_kernels", "tensor_files", "plots"], 1),
    **dict.fromkeys(["formats", "joint_inputs", "ops", "weights"], 2),
    **dict.fromkeys(["networks", "data", "infinite_width"], 3),
    **{"nn": 4, "tracing": 5, "rainbow": 6},
    **dict.fromkeys(["analysis", "random_networks"], 7),
    **dict.fromkeys(["cli"], 8),
    **dict.fromkeys(["", "__main__"], 9),  # "" is rainbow_fast/__init__.py, which all others stand under
    **dict.fromkeys(["locks", "owner", "_C"], -1),
}

OPS = "gaussian uniform cross_covariance polar sample_project_align random_features wavelet_modulus".split()
OPEN_ROOMS = {
    "rainbow_fast/ops/{}.py": OPS,
    "csrc/cpu/{}.cpp": OPS,
    "csrc/cuda/{}.cu": [op for op in OPS if op not in ("polar", "random_features", "wavelet_modulus")],
    "rainbow_fast/triton_kernels/{}.py": OPS,
    "tests/triton_kernels/interpreted/{}.py": OPS,
    "tests/ops/test_{}.py": OPS,
    "bench/bench_{}.py": OPS,
}
RAINBOW = [  # rooms and files of rainbow_fast/rainbow, from the ground up: here too, imports go down
    ["inputs", "positions", "resizing", "scores", "channel_moments", "pair_moments", "moments", "site_statistics"],
    ["laws", "kinds", "narrowing", "filter_covariance", "results"],
    ["rebuilding"],
    ["network"],
    ["alignment"],
    ["options", "option_checks", "chunks"],
    ["holdout"],
    ["prepare"],
    ["spec", "report"],
    ["fitting", "summaries"],
    ["sampling"],
    ["planning"],
    ["compare", "sites", "model", "rainbowize"],
    ["files"],
]

SAME_SUBJECT = [  # rooms in which a name has one meaning
    {"rainbow_fast/ops", "rainbow_fast/triton_kernels"},
    {"rainbow_fast/analysis", "rainbow_fast/plots"},
    {"rainbow_fast/random_networks", "rainbow_fast/plots"},
    {"studies/breadth", "studies/cifar10", "studies/resnet20", "studies/convergence"},
]

LONGEST = 400
LICENCE = "SPDX-License-Identifier: BSD-3-Clause"
VAGUE = {"made", "found", "given", "known", "its", "cut"}  # names that do not say what they hold

FACTORIES = (
    "empty empty_strided zeros ones full tensor as_tensor arange linspace logspace eye rand randn randint randperm"
)

# Each check takes the root of a tree and returns what is wrong in it, in sentences.


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its full name, `rainbow_fast.ops` for its `__init__.py`."""
    names = {}
    for path in sorted(root.glob("rainbow_fast/**/*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(root: Path) -> dict[str, set[str]]:
    """The modules of the package that each module imports, anywhere in its text and in any form."""
    paths = modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = f"{source}.{alias.name}"
                    targets.add(inner if inner in paths or inner == "rainbow_fast._C" else source)
        graph[name] = {target for target in targets if target.split(".")[0] == "rainbow_fast"}
    return graph


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def upward_imports(root: Path) -> list[str]:
    graph = imports(root)
    without = [f"{name} stands in no room with a floor" for name in graph if room(name) not in FLOORS]
    return without + [
        f"{name} imports {target}, which is not below it"
        for name, targets in graph.items()
        for target in sorted(targets)
        if room(name) in FLOORS
        and room(target) != room(name)
        and FLOORS.get(room(target), len(FLOORS)) >= FLOORS[room(name)]
    ]


def rainbow_floor(module: str) -> int | None:
    """The floor of a module of rainbow_fast.rainbow; None for other modules and for modules without a floor."""
    parts = module.split(".")
    if parts[:2] != ["rainbow_fast", "rainbow"] or len(parts) < 3:
        return None
    return next((floor for floor, rooms in enumerate(RAINBOW) if parts[2] in rooms), None)


def upward_imports_in_rainbow(root: Path) -> list[str]:
    wrong = []
    for name, targets in imports(root).items():
        floor = rainbow_floor(name)
        if floor is None:
            if name.startswith("rainbow_fast.rainbow."):
                wrong.append(f"{name} stands in no room with a floor")
            continue
        above = [t for t in sorted(targets) if (rainbow_floor(t) or 0) > floor]
        wrong += [f"{name} imports {target}, which is above it" for target in above]
    return wrong


def imports_of_studies(root: Path) -> list[str]:
    """A study may import everything; the package imports no study, and is installed without them."""
    return [
        f"{path.relative_to(root)} imports a study"
        for path in modules(root).values()
        if re.search(r"^\s*(from|import) studies\b", path.read_text(), re.MULTILINE)
    ]


def shared_names(root: Path) -> list[str]:
    """Files may share a name only for an op in its rooms, for the figure of an analysis, and in studies."""
    places: dict[str, list[str]] = {}
    for path in [*modules(root).values(), *root.glob("studies/**/*.py")]:
        folder, stem = str(path.parent.relative_to(root)), path.stem
        if stem not in ("__init__", "__main__"):
            places.setdefault(stem, []).append(folder)
    return [
        f"{name}.py stands in {', '.join(sorted(folders))}"
        for name, folders in sorted(places.items())
        if len(folders) > 1 and not any(set(folders) <= rooms for rooms in SAME_SUBJECT)
    ]


def unmirrored_tests(root: Path) -> list[str]:
    """Every folder of tests belongs to a folder of the sources."""
    folders = {path.parent.relative_to(root / "tests") for path in root.glob("tests/**/test_*.py")}
    places = [root / "rainbow_fast", root]
    return [f"tests/{f} tests no folder" for f in sorted(folders) if not any((place / f).is_dir() for place in places)]


def circles(root: Path) -> list[str]:
    try:
        graphlib.TopologicalSorter(imports(root)).prepare()
    except graphlib.CycleError as circle:
        return [" imports ".join(reversed(circle.args[1]))]
    return []


def missing_files(root: Path) -> list[str]:
    wanted = [path.format(name) for path, names in OPEN_ROOMS.items() for name in names]
    return [f"{path} is missing" for path in wanted if not (root / path).is_file()]


def missing_lines(root: Path) -> list[str]:
    kernels, readme = (root / "csrc/bind.cpp").read_text(), (root / "README.md").read_text()
    return [f"csrc/bind.cpp does not bind {op}" for op in OPS if not re.search(rf'"{op}\w*"', kernels)] + [
        f"README.md has no row for {op}" for op in OPS if not re.search(rf"^\|.*\b{op}\b", readme, re.MULTILINE)
    ]


def sources(root: Path) -> list[Path]:
    folders = ("rainbow_fast", "csrc", "studies", "tests", "bench", "docs")
    paths = [path for folder in folders for path in root.glob(f"{folder}/**/*")]
    return sorted(path for path in paths if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"})


def long_files(root: Path) -> list[str]:
    lengths = {path: len(path.read_text().splitlines()) for path in sources(root)}
    return [f"{path.relative_to(root)} has {n} lines" for path, n in lengths.items() if n > LONGEST]


def unlicensed_files(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} does not begin with its licence"
        for path in sources(root)
        if LICENCE not in "".join(path.read_text().splitlines()[:2])
    ]


def factories_without_device(root: Path) -> list[str]:
    """A new tensor without a device is on the default device, which a user may have set to `meta` or a GPU."""
    wrong = []
    for path in modules(root).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = ast.unparse(node.func)
            named = {keyword.arg for keyword in node.keywords} & {"device", None}
            if called.removeprefix("torch.") in FACTORIES.split() and called.startswith("torch.") and not named:
                wrong.append(f"{path.relative_to(root)}:{node.lineno} calls {called} without a device")
    return wrong


def foreign_includes(root: Path) -> list[str]:
    """Kernels know neither torch nor Python: only bind.cpp does."""
    foreign = re.compile(r"^\s*#\s*include\s*[<\"]((torch|ATen|c10|pybind11)/.*|Python\.h)[>\"]", re.MULTILINE)
    return [
        f"{path.relative_to(root)} includes {match[1]}"
        for path in sources(root)
        if path.is_relative_to(root / "csrc") and path != root / "csrc/bind.cpp"
        for match in foreign.finditer(path.read_text())
    ]


def misplaced_helpers(root: Path) -> list[str]:
    """What tests share is in tests/helpers, except for the rule of tolerances and the file of pytest."""
    flat = sorted(path.name for path in root.glob("tests/*.py"))
    return [
        f"tests/{name} is no test: its place is tests/helpers"
        for name in flat
        if not name.startswith("test_") and name not in ("conftest.py", "tolerance.py")
    ]


def vague_names(root: Path) -> list[str]:
    wrong = []
    folders = ("rainbow_fast", "studies", "tests", "bench")
    for path in sorted(path for folder in folders for path in root.glob(f"{folder}/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "attr", None)
            if name in VAGUE and not isinstance(getattr(node, "ctx", None), ast.Load):
                wrong.append(f"{path.relative_to(root)}:{node.lineno} calls a thing `{name}`")
    return wrong


CHECKS = [
    upward_imports,
    upward_imports_in_rainbow,
    imports_of_studies,
    shared_names,
    unmirrored_tests,
    circles,
    missing_files,
    missing_lines,
    long_files,
    unlicensed_files,
    factories_without_device,
    foreign_includes,
    misplaced_helpers,
    vague_names,
]


@pytest.mark.parametrize("check", CHECKS)
def test_house(check: Callable[[Path], list[str]]) -> None:
    assert check(ROOT) == []


# Each check can fail: in a toy house that is in order, one thing is made wrong.


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    paths = [path.format(name) for path, names in OPEN_ROOMS.items() for name in names]
    for path in [*paths, "rainbow_fast/__init__.py", "rainbow_fast/backend.py", "rainbow_fast/rainbow/network.py"]:
        write(tmp_path, path, f"{'#' if path.endswith('.py') else '//'} {LICENCE}\n")
    bound = "".join(f'm.def("{op}", ...);\n' for op in OPS)
    write(tmp_path, "csrc/bind.cpp", f"// {LICENCE}\n#include <pybind11/pybind11.h>\n{bound}")
    write(tmp_path, "README.md", "".join(f"| `{op}` | what it does |\n" for op in OPS))
    write(tmp_path, "rainbow_fast/__init__.py", f"# {LICENCE}\nfrom rainbow_fast.ops.polar import polar\n")
    write(tmp_path, "rainbow_fast/ops/polar.py", f"# {LICENCE}\nfrom . import gaussian\nfrom .. import backend, _C\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_toy_house_is_in_order(toy: Path) -> None:
    assert [wrong for check in CHECKS for wrong in check(toy)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import rainbow_fast.rainbow.network",
        "from rainbow_fast.rainbow import network",
        "from rainbow_fast.rainbow.network import Network",
        "from ..rainbow import network",
        "from .. import rainbow",
        "from rainbow_fast import sample",
        "def late():\n    from rainbow_fast.rainbow.network import Network",
    ],
)
def test_upward_import_is_found(toy: Path, line: str) -> None:
    write(toy, "rainbow_fast/rainbow/__init__.py", f"# {LICENCE}\n")
    write(toy, "rainbow_fast/ops/gaussian.py", f"# {LICENCE}\n{line}\n")
    [wrong] = upward_imports(toy)
    assert wrong.startswith("rainbow_fast.ops.gaussian imports rainbow_fast")


def test_sideways_import_is_found(toy: Path) -> None:
    write(toy, "rainbow_fast/data.py", "from rainbow_fast.networks import mlp")
    write(toy, "rainbow_fast/networks/mlp.py", "")
    assert upward_imports(toy) == ["rainbow_fast.data imports rainbow_fast.networks.mlp, which is not below it"]


def test_room_without_floor_is_found(toy: Path) -> None:
    write(toy, "rainbow_fast/attic.py", "")
    assert upward_imports(toy) == ["rainbow_fast.attic stands in no room with a floor"]


def test_circle_is_found(toy: Path) -> None:
    write(toy, "rainbow_fast/ops/gaussian.py", "from rainbow_fast.ops.polar import polar")
    assert upward_imports(toy) == []
    [circle] = circles(toy)
    assert "rainbow_fast.ops.gaussian imports rainbow_fast.ops.polar" in circle


@pytest.mark.parametrize(
    "path, text, check, wrong",
    [
        (
            "rainbow_fast/rainbow/laws/white.py",
            "from rainbow_fast.rainbow.sampling import run",
            upward_imports_in_rainbow,
            "rainbow_fast.rainbow.laws.white imports rainbow_fast.rainbow.sampling, which is above it",
        ),
        (
            "rainbow_fast/rainbow/attic.py",
            "",
            upward_imports_in_rainbow,
            "rainbow_fast.rainbow.attic stands in no room with a floor",
        ),
        (
            "rainbow_fast/ops/gaussian.py",
            "import studies.cifar10",
            imports_of_studies,
            "rainbow_fast/ops/gaussian.py imports a study",
        ),
        (
            "rainbow_fast/data/polar.py",
            "",
            shared_names,
            "polar.py stands in rainbow_fast/data, rainbow_fast/ops, rainbow_fast/triton_kernels",
        ),
        ("tests/attic/test_it.py", "", unmirrored_tests, "tests/attic tests no folder"),
    ],
)
def test_what_stands_in_a_wrong_room_is_found(toy: Path, path: str, text: str, check: Callable, wrong: str) -> None:
    write(toy, path, text)
    assert check(toy) == [wrong]


@pytest.mark.parametrize("path", [path.format(names[0]) for path, names in OPEN_ROOMS.items()])
def test_missing_file_is_found(toy: Path, path: str) -> None:
    (toy / path).unlink()
    assert missing_files(toy) == [f"{path} is missing"]


@pytest.mark.parametrize(
    "check, path, text, wrong",
    [
        (missing_lines, "csrc/bind.cpp", "", "csrc/bind.cpp does not bind gaussian"),
        (missing_lines, "README.md", "gaussian, outside of the table", "README.md has no row for gaussian"),
        (long_files, "csrc/cpu/polar.cpp", "\n" * 401, "csrc/cpu/polar.cpp has 401 lines"),
        (unlicensed_files, "tests/test_polar.py", "", "tests/test_polar.py does not begin with its licence"),
        (
            factories_without_device,
            "rainbow_fast/ops/gaussian.py",
            "import torch\ntorch.zeros(3, device=d)\ntorch.eye(3)",
            "rainbow_fast/ops/gaussian.py:3 calls torch.eye without a device",
        ),
        (foreign_includes, "csrc/cpu/gemm.h", "#include <Python.h>", "csrc/cpu/gemm.h includes Python.h"),
        (foreign_includes, "csrc/cpu/gemm.h", '# include "torch/all.h"', "csrc/cpu/gemm.h includes torch/all.h"),
        (misplaced_helpers, "tests/here.py", "", "tests/here.py is no test: its place is tests/helpers"),
        (vague_names, "studies/one.py", "\ncut = 1", "studies/one.py:2 calls a thing `cut`"),
        (vague_names, "tests/one.py", "def one(given): ...", "tests/one.py:1 calls a thing `given`"),
    ],
)
def test_other_faults_are_found(toy: Path, check: Callable, path: str, text: str, wrong: str) -> None:
    write(toy, path, text)
    assert check(toy)[0] == wrong
