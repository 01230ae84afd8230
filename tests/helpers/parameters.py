# SPDX-License-Identifier: BSD-3-Clause
"""Parameters of tests, some of them marked slow."""

from collections.abc import Iterable, Mapping

import pytest


def slow_but_for(fast: Iterable, cases: Iterable) -> list:
    """The cases as parameters; all but those in `fast` are marked slow. The names of a mapping are also the ids."""
    fast = list(fast)
    named = cases.items() if isinstance(cases, Mapping) else [(case, case) for case in cases]
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=name if isinstance(cases, Mapping) else None,
            marks=() if name in fast else pytest.mark.slow,
        )
        for name, case in named
    ]
