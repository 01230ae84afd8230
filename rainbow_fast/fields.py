# SPDX-License-Identifier: BSD-3-Clause
"""Options as fields of frozen dataclasses: each is declared once, with its default, its check and its help."""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields, replace
from typing import Any, Self

Check = Callable[[str, Any], Any]  # takes the name and the value; returns the value, or raises


def option(default: Any, help: str, check: Check | None = None) -> Any:
    """A field of a dataclass of options."""
    return field(default=default, metadata={"help": help, "check": check})


class Options:
    """Base of the dataclasses of options: every field is checked when one is made."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]  # of a dataclass
            if f.metadata["check"] is not None:
                object.__setattr__(self, f.name, f.metadata["check"](f.name, getattr(self, f.name)))

    def to_dict(self) -> dict[str, Any]:
        """The options as numbers, strings, lists and dicts; an object that JSON does not know as its text."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    def changed(self, **words: Any) -> Self:
        """The same with other values."""
        return replace(self, **words)  # type: ignore[type-var]  # of a dataclass

    @classmethod
    def from_dict(cls, words: Mapping[str, Any], where: str = "") -> Self:
        """The options of that name and value.

        Args:
            where: begins the message of an error.

        Raises:
            TypeError: a name that is no option; the message has the nearest one.
            ValueError, TypeError: a value that the option refuses.
        """
        (options,) = collect((), words, cls, where=where)
        return options


def collect(objects: Sequence[Any], words: Mapping[str, Any], *kinds: type[Any], where: str = "") -> tuple[Any, ...]:
    """An object of each kind of options, from those that are given whole and from single words.

    Raises:
        TypeError: a word that is no option of these kinds, an object of another kind, or one beside words of its kind.
        ValueError, TypeError: a value that the option refuses.
    """
    owner = {f.name: kind for kind in kinds for f in fields(kind)}
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


def unknown(name: str, options: Iterable[str]) -> str:
    """What an error says of a name that is no option."""
    options = list(options)
    near = difflib.get_close_matches(name, options, 1, 0.5)
    return f"{name}: no such option, " + (
        f"did you mean {near[0]}?" if near else f"wanted some of {', '.join(options)}"
    )


def accepts(*kinds: type[Any]) -> Callable[[Callable], Callable]:
    """Give a function with ``**words`` the signature and the help of the options that it takes."""

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
    """The help of all options, as it stands in docstrings."""
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
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
