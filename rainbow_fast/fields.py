# SPDX-License-Identifier: BSD-3-Clause
"""Options as fields of frozen dataclasses: each is declared once, with its default, its check and its help."""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields, replace
from typing import Any, NamedTuple, Self

from rainbow_fast.arguments import Check


class Former(NamedTuple):
    """The name that an option had in the last release, and what turns a value of then into one of now."""

    name: str
    convert: Callable[[Any], Any] = lambda value: value


def option(default: Any, help: str, check: Check | None = None, *, former: Former | None = None) -> Any:
    """A field of a dataclass of options. Its former name still works, with a FutureWarning."""
    return field(default=default, metadata={"help": help, "check": check, "former": former})


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
    """The present name, with the former one, by the former name."""
    options = [f for kind in kinds for f in fields(kind) if f.metadata.get("former") is not None]
    return {f.metadata["former"].name: (f.name, f.metadata["former"]) for f in options}


def warn_former(former: str, name: str, stacklevel: int) -> None:
    """Say that an option has a new name; `stacklevel` is seen from the caller, as for `warnings.warn`."""
    message = f"{former}: this option is now called {name}; the old name will be removed in the next release"
    warnings.warn(message, FutureWarning, stacklevel=stacklevel + 1)


def renamed(**names: str) -> Callable[[Callable], Callable]:
    """Let a function take keyword arguments by their former names too: ``@renamed(former="present")``."""

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
    """The same options by their present names.

    Raises:
        TypeError: an option that has both names.
    """
    present, former = dict(words), former_names(*kinds)
    for old, (name, change) in former.items():
        if old in words:
            if name in words:
                raise TypeError(f"{old}: given beside {name}, which is its new name; wanted {name} alone")
            warn_former(old, name, stacklevel=4)  # past `collect` and the public function
            present[name] = change.convert(present.pop(old))
    return present


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
