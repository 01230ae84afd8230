# SPDX-License-Identifier: BSD-3-Clause
"""What the fit of a limit refuses. That it finds planted limits is tested with the study that uses it."""

import math

import pytest

pytest.importorskip("scipy")

from rainbow_fast.analysis import fit_limit


@pytest.mark.parametrize(
    "errors",
    [
        {1.0: 0.5, 2.0: 0.4},
        {1.0: 0.5, 2.0: 0.4, 4.0: 0.0},
        {1.0: 0.5, 2.0: 0.4, 4.0: -0.1},
        {1.0: 0.5, 2.0: 0.4, 4.0: math.nan},
        {1.0: 0.5, 2.0: math.inf, 4.0: 0.3},
        {0.0: 0.5, 2.0: 0.4, 4.0: 0.3},
        {1.0: 0.5, 2.0: 0.4, math.inf: 0.3},
    ],
)
def test_what_has_no_limit_is_refused(errors: dict[float, float]) -> None:
    message = r"errors: wanted three or more, factors and errors finite and above 0, got \{"
    with pytest.raises(ValueError, match=message):
        fit_limit(errors)
