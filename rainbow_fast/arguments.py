# SPDX-License-Identifier: BSD-3-Clause
"""Strict checks of arguments. An error names the argument, what was given and what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Check = Callable[[str, Any], Any]  # takes the name and the value; returns the value, or raises

# torch.compile turns numbers into the Sym types. These are tuples because it cannot trace a union of these types.
_INTEGERS = (int, torch.SymInt)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_FLAGS = (bool, torch.SymBool)


def integer(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """An integer of Python or NumPy as an int. Bools, floats and strings are not accepted.

    Args:
        name: the name of the argument, for messages.
        value: the value to check.
        least: the smallest allowed value; 0 by default.
        most: the largest allowed value; None (default) for no limit.

    Raises:
        TypeError: `value` is not an integer.
        ValueError: `value` is outside [least, most].
    """
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, _INTEGERS) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: wanted an integer, got {type(value).__name__}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}={value}: wanted {_range(name, least, most)}")
    return value  # type: ignore[return-value]  # an integer of torch.compile is one, too


def bytes_of(name: str, value: Any) -> int:
    """A number of bytes, as an int: an integer of at least 0, or a float with an integral value such as 2e9.

    Raises:
        TypeError, ValueError: as `integer`; or a float has a fraction or is not finite.
    """
    if isinstance(value, (float, np.floating)):
        if not float(value).is_integer():  # also False for NaN and infinity
            raise ValueError(f"{name}={value}: wanted a whole number of bytes")
        value = int(value)
    return integer(name, value)


def tensor(name: str, value: Any) -> Tensor:
    """Check that `value` is a tensor, and return it.

    Raises:
        TypeError: `value` is something else, for example an array, a list, None or a number.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {_kind(value)}: wanted a torch.Tensor")
    return value


def optional_tensor(name: str, value: Any) -> Tensor | None:
    """Check that `value` is a tensor or None, and return it.

    Raises:
        TypeError: `value` is something else.
    """
    return None if value is None else tensor(name, value)


def number(name: str, value: Any) -> float:
    """A real number of Python or NumPy as a number of Python; bools are not accepted.

    Raises:
        TypeError: `value` is something else.
    """
    if isinstance(value, (np.number, np.bool_)):
        value = value.item()
    if not isinstance(value, _NUMBERS) or isinstance(value, bool):
        raise TypeError(f"{name} is {_kind(value)}: wanted a number")
    return value  # type: ignore[return-value]  # a number of torch.compile is one, too


def flag(name: str, value: Any) -> bool:
    """Check that `value` is True or False, and return it.

    Raises:
        TypeError: `value` is something else.
    """
    if not isinstance(value, _FLAGS):
        raise TypeError(f"{name}={value!r}: wanted True or False")
    return value  # type: ignore[return-value]


def one_of(name: str, value: Any, names: Iterable[str]) -> Any:
    """Check that `value` is one of `names`, and return it.

    Raises:
        ValueError: `value` is something else.
    """
    names = tuple(names)
    if value not in names:
        raise ValueError(f"{name}={value!r}: wanted one of {', '.join(names)}")
    return value


def folder(name: str, value: Any) -> Any:
    """Check that `value` is the path of an existing folder, and return it.

    Raises:
        ValueError: there is no folder at this path.
    """
    if not Path(value).is_dir():
        raise ValueError(f"{name}: no folder {value}")
    return value


def optional(check: Check) -> Check:
    """A check that accepts None and otherwise applies `check`."""
    return lambda name, value: None if value is None else check(name, value)


def between(low: float, high: float, wanted: str, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A check for a number from `low` to `high`. Both ends are allowed unless `open_low` or `open_high` is set.

    `wanted` says in error messages which numbers are allowed.
    """

    def check(name: str, value: Any) -> Any:
        value = number(name, value)
        inside = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
        if not inside:
            raise ValueError(f"{name}={value}: wanted {wanted}")
        return value

    return check


def _kind(value: Any) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return "None" if value is None else f"a {name}"


def _range(name: str, least: int, most: int | None) -> str:
    if most is None:
        return f"{name} >= {least}"
    power = (most + 1).bit_length() - 1
    if most + 1 == 2**power and power > 16:
        return f"{least} <= {name} < 2^{power}"
    return f"{least} <= {name} <= {most}"
