# SPDX-License-Identifier: BSD-3-Clause
"""Checks of single values of options. Each returns the value, or raises an error that names the option."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from rainbow_fast.arguments import Check, one_of

HOLDOUT = 0.1  # fraction of the data that is held out by default
STORAGES = ("memory", "file", "recompute")


def true_or_false(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: wanted True, False or None")
    return value


def named(names: Iterable[str], kind: type) -> Check:
    """One of the names, or an object of that kind."""
    return lambda name, value: value if isinstance(value, kind) else one_of(name, value, names)


def classifier(name: str, value: Any) -> str:
    if value not in (None, "refit", "refit_aligned", "retrained"):
        raise ValueError(f"{name}={value!r}: wanted None, 'refit', 'refit_aligned' or 'retrained'")
    return value


def holdout(name: str, value: Any) -> Any:
    """Data, a whole number of samples, or a fraction below 1; None stands for the default."""
    if value is None:
        return HOLDOUT
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return value
    if isinstance(value, float | np.floating) and not 0 <= value < 1:
        raise ValueError(f"{name}={value}: wanted data, a number of samples (an int), or a fraction, 0 <= {name} < 1")
    if value < 0:
        raise ValueError(f"{name}={value}: wanted data, a number of samples, at least 0, or a fraction")
    return value


def output(name: str, value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise TypeError(f"{name}={value!r}: wanted the name of an output, its place in a tuple, or None")
    return value


def channel_axes(name: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{name}={value!r}: wanted a dict from names of sites to axes, or None")
    return dict(value)


def metric(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r}: wanted a function of outputs and labels, or None")
    return value


def flattened(value: Any) -> Any:
    """The values of the former option `align`."""
    if value not in ("channels", "flattened"):
        raise ValueError(f"align={value!r}: wanted align_flattened=True or False")
    return value == "flattened"


def storage(name: str, value: Any) -> Any:
    if value not in (None, *STORAGES):
        raise ValueError(f"{name}={value!r}: wanted None or one of {', '.join(STORAGES)}")
    return value


def storage_dtype(name: str, value: Any) -> Any:
    if value not in (None, torch.bfloat16):
        raise ValueError(f"{name}={value}: wanted None or torch.bfloat16")
    return value
