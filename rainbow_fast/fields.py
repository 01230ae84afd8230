# SPDX-License-Identifier: BSD-3-Clause
"""Options as fields of frozen dataclasses. Each option is declared once, with its default, its check and its help."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields, replace
from typing import Any, NamedTuple, Self

from rainbow_fast.arguments import Check
from rainbow_fast.io import infinite


class Former(NamedTuple):
    """The old name of an option, and a function that converts an old value into a new one."""

    name: str
    convert: Callable[[Any], Any] = lambda value: value


def option(default: Any, help: str, check: Check | None = None, *, former: Former | None = None) -> Any:
    """A field of a dataclass of options. Its old name, `former`, still works, with a FutureWarning."""
    return field(default=default, metadata={"help": help, "check": check, "former": former})


class Options:
    """Base class of the dataclasses of options. All fields are checked when an object is made."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]  # of a dataclass
            if f.metadata["check"] is not None:
                object.__setattr__(self, f.name, f.metadata["check"](f.name, getattr(self, f.name)))

    def to_dict(self) -> dict[str, Any]:
        """The options as a dict of numbers, strings, lists and dicts; other objects are replaced by their `repr`.

        An infinite number is the string "inf", because JSON has none.
        """
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    def changed(self, **words: Any) -> Self:
        """A copy with other values for some options."""
        return replace(self, **words)  # type: ignore[type-var]  # of a dataclass

    @classmethod
    def from_dict(cls, words: Mapping[str, Any], where: str = "") -> Self:
        """The options from a dict of names and values; options that are missing have their defaults.

        Args:
            words: the dict; "inf" stands for an infinite number.
            where: text that begins every error message.

        Raises:
            TypeError: a name is not an option; the message suggests the most similar one.
            ValueError, TypeError: a value is not valid.
        """
        (options,) = collect((), infinite(words), cls, where=where)
        return options


def collect(objects: Sequence[Any], words: Mapping[str, Any], *kinds: type[Any], where: str = "") -> tuple[Any, ...]:
    """One object for each class of options in `kinds`.

    Args:
        objects: objects of some of these classes, which are returned as they are.
        words: single options by name, from which the other objects are made.
        kinds: the classes of options.
        where: text that begins every error message.

    Raises:
        TypeError: a name is not an option of these classes, an object has another class, or both an object and single
            options of its class are given.
        ValueError, TypeError: a value is not valid.
    """
    owner = {f.name: kind for kind in kinds for f in fields(kind)}
    words = _renamed(words, kinds)
    for name in words:
        if name not in owner:
            raise TypeError(where + unknown(name, owner))
    whole = {}
    for one in objects:
        if type(one) not in kinds:
            wanted = ", ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{where}options: got {type(one).__name__}, wanted some of {wanted}, or keyword arguments")
        whole[type(one)] = one
    collected = []
    for kind in kinds:
        own = {name: value for name, value in words.items() if owner[name] is kind}
        if kind in whole and own:
            raise TypeError(f"{where}{next(iter(own))}: given beside {kind.__name__}, wanted it as a field of that")
        collected.append(whole[kind] if kind in whole else kind(**own))
    return tuple(collected)


def former_names(*kinds: type[Any]) -> dict[str, tuple[str, Former]]:
    """A dict from the old name of an option to its new name and its `Former`."""
    options = [f for kind in kinds for f in fields(kind) if f.metadata.get("former") is not None]
    return {f.metadata["former"].name: (f.name, f.metadata["former"]) for f in options}


def warn_former(former: str, name: str, stacklevel: int) -> None:
    """Warn that an option has a new name; `stacklevel` counts from the caller, as in `warnings.warn`."""
    message = f"{former}: this option is now called {name}; the old name will be removed in the next release"
    warnings.warn(message, FutureWarning, stacklevel=stacklevel + 1)


def renamed(**names: str) -> Callable[[Callable], Callable]:
    """A decorator that lets a function accept old names of keyword arguments: ``@renamed(old="new")``."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*args: Any, **words: Any) -> Any:
            for former, name in names.items():
                if former in words:
                    warn_former(former, name, stacklevel=2)
                    words[name] = words.pop(former)
            return function(*args, **words)

        return called

    return decorate


def _renamed(words: Mapping[str, Any], kinds: Sequence[type[Any]]) -> dict[str, Any]:
    """The same options with their new names.

    Raises:
        TypeError: an option is given by both of its names.
    """
    present, former = dict(words), former_names(*kinds)
    for old, (name, change) in former.items():
        if old in words:
            if name in words:
                raise TypeError(f"{old}: given beside {name}, which is its new name; wanted {name} alone")
            warn_former(old, name, stacklevel=4)  # the caller of the public function that calls `collect`
            present[name] = change.convert(present.pop(old))
    return present


def unknown(name: str, options: Iterable[str]) -> str:
    """The error message for a name that is not an option."""
    options = list(options)
    near = difflib.get_close_matches(name, options, 1, 0.5)
    return f"{name}: no such option, " + (
        f"did you mean {near[0]}?" if near else f"wanted some of {', '.join(options)}"
    )


def accepts(*kinds: type[Any]) -> Callable[[Callable], Callable]:
    """A decorator that adds options to the signature and the docstring of a function with ``**words``."""

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        keyword = inspect.Parameter.KEYWORD_ONLY
        taken = [
            inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type) for k in kinds for f in fields(k)
        ]
        function.__signature__ = signature.replace(parameters=own + taken)  # type: ignore[attr-defined]
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{help_of(*kinds)}"
        return function

    return decorate


def help_of(*kinds: type[Any]) -> str:
    """The help of all options of these classes, as text for docstrings."""
    texts = [f"{f.name} = {f.default!r}: {f.metadata['help']}" for kind in kinds for f in fields(kind)]
    wrap = textwrap.TextWrapper(width=116, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)
    return "\n".join(wrap.fill(text) for text in texts)


def documented(kind: type[Any]) -> type[Any]:
    kind.__doc__ = f"{inspect.cleandoc(kind.__doc__ or '')}\n\nAttributes:\n{help_of(kind)}"
    return kind


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
