# SPDX-License-Identifier: BSD-3-Clause
"""The public names: their arguments and results are public too, and have docstrings."""

import inspect
import re
import tomllib

import pytest
from here import ROOT, fresh_python

import rainbow_fast as rf
from rainbow_fast import analysis, infinite_width, nn, plots, random_networks

ROOMS = {
    "rainbow_fast": rf,
    "analysis": analysis,
    "infinite_width": infinite_width,
    "nn": nn,
    "random_networks": random_networks,
    "plots": plots,
}
# Names in annotations that belong to Python, torch or numpy, or are a name for a union of such types.
FOREIGN = set(
    """
    Any ArrayLike Callable DataFrame Figure Interval Iterable Iterator Linear Mapping Module None Path PathLike Record
    Records Seed Select Self Sequence Sequential Tensor _ConvNd abc bool bytes class collections device dict
    dtype float int list ndarray nn np object os pandas str torch tuple type typing
    """.split()
)


def annotations(thing: object) -> set[str]:
    """The names in the annotations of a function, or of a class's constructor, fields and public methods."""
    functions = [thing] if inspect.isfunction(thing) else []
    texts: list[str] = []
    if inspect.isclass(thing):
        texts += map(str, thing.__dict__.get("__annotations__", {}).values())
        own = [f for name, f in vars(thing).items() if not name.startswith("_")]
        functions += [f.fget if isinstance(f, property) else getattr(f, "__func__", f) for f in own]
    for function in functions:
        texts += map(str, getattr(function, "__annotations__", {}).values())
    texts = [re.sub(r"ForwardRef\('([^']*)'.*?\)", r"\1", text) for text in texts]
    return {word for text in texts for word in re.findall(r"[A-Za-z_]\w*", re.sub(r"'[^']*'", "", text))}


@pytest.mark.parametrize("room", ROOMS)
def test_all_names_are_there_and_have_docstrings(room):
    module = ROOMS[room]
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        if callable(getattr(module, name)) and name != "Progress":
            assert inspect.getdoc(getattr(module, name)), name


@pytest.mark.parametrize("room", ROOMS)
def test_public_members_have_docstrings(room):
    """Methods and properties have docstrings; a method that overrides another one has its docstring."""
    module = ROOMS[room]
    for name in module.__all__:
        thing = getattr(module, name)
        if not inspect.isclass(thing):
            continue
        for member, value in vars(thing).items():
            if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"


@pytest.mark.parametrize("room", ROOMS)
def test_types_of_public_names_are_public(room):
    module = ROOMS[room]
    public = {name for each in ROOMS.values() for name in each.__all__}
    for name in module.__all__:
        thing = getattr(module, name)
        private = annotations(thing) - public - FOREIGN
        assert not private, f"{name}: {sorted(private)}"


def test_version_is_that_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rainbow_fast.version.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", rf.__version__)


def test_import_leaves_the_compiler_of_torch_out() -> None:
    """Its import takes about as long as that of torch itself."""
    printed = fresh_python("import sys, rainbow_fast; print('torch._dynamo' in sys.modules)")
    assert printed == "False\n"
