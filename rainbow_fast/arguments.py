# SPDX-License-Identifier: BSD-3-Clause
"""One strict reading of arguments for the whole package: an error names what came and what was wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Check = Callable[[str, Any], Any]  # takes the name and the value; returns the value, or raises

# torch.compile turns numbers into the Sym kinds. (It cannot trace a union of such types, so these are tuples.)
_INTEGERS = (int, torch.SymInt)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_FLAGS = (bool, torch.SymBool)


def integer(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """`value` as an int: Python's and NumPy's integers, nothing that would have to be rounded or parsed; no bool.

    Args:
        most: the largest that is taken; None for no limit.

    Raises:
        TypeError: another kind of value.
        ValueError: an integer outside [least, most].
    """
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, _INTEGERS) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: wanted an integer, got {type(value).__name__}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}={value}: wanted {_range(name, least, most)}")
    return value  # type: ignore[return-value]  # an integer of torch.compile is one, too


def bytes_of(name: str, value: Any) -> int:
    """A number of bytes: as `integer`, or a float that is integral, as in 2e9.

    Raises:
        TypeError, ValueError: as `integer`; a float with a fraction, or one that is not finite.
    """
    if isinstance(value, (float, np.floating)):
        if not float(value).is_integer():  # not NaN or infinity either
            raise ValueError(f"{name}={value}: wanted a whole number of bytes")
        value = int(value)
    return integer(name, value)


def tensor(name: str, value: Any) -> Tensor:
    """`value`, which is a tensor.

    Raises:
        TypeError: an array, a list, None, a number, or anything else.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {_kind(value)}: wanted a torch.Tensor")
    return value


def optional_tensor(name: str, value: Any) -> Tensor | None:
    """`value`, which is a tensor or None.

    Raises:
        TypeError: anything else.
    """
    return None if value is None else tensor(name, value)


def number(name: str, value: Any) -> float:
    """`value` as a float: a real number of Python or NumPy, no bool.

    Raises:
        TypeError: anything else.
    """
    if isinstance(value, (np.number, np.bool_)):
        value = value.item()
    if not isinstance(value, _NUMBERS) or isinstance(value, bool):
        raise TypeError(f"{name} is {_kind(value)}: wanted a number")
    return value  # type: ignore[return-value]  # a number of torch.compile is one, too


def flag(name: str, value: Any) -> bool:
    """`value`, which is True or False.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(value, _FLAGS):
        raise TypeError(f"{name}={value!r}: wanted True or False")
    return value  # type: ignore[return-value]


def one_of(name: str, value: Any, names: Iterable[str]) -> Any:
    """`value`, which is one of the names.

    Raises:
        ValueError: anything else.
    """
    names = tuple(names)
    if value not in names:
        raise ValueError(f"{name}={value!r}: wanted one of {', '.join(names)}")
    return value


def folder(name: str, value: Any) -> Any:
    """`value`, which is the path of an existing folder.

    Raises:
        ValueError: anything else.
    """
    if not Path(value).is_dir():
        raise ValueError(f"{name}: no folder {value}")
    return value


def optional(check: Check) -> Check:
    """The same check, which lets None through."""
    return lambda name, value: None if value is None else check(name, value)


def between(low: float, high: float, wanted: str, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A check for a number of an interval, closed but for the ends that are open."""

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
