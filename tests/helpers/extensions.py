# SPDX-License-Identifier: BSD-3-Clause
"""Extensions of other builds than the installed one, loaded from their files. This file imports no torch."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def installed() -> Path:
    """The file of the extension that `import rainbow_fast` loads."""
    [extension] = ROOT.glob("rainbow_fast/_C*.so")
    return extension


def load(path: Path, name: str) -> ModuleType:
    """Load an extension by its own name: for a name that it knows, pybind11 would return the first module."""
    spec = importlib.util.spec_from_file_location(f"{name}._C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
