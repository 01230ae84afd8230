# SPDX-License-Identifier: BSD-3-Clause
"""The study of rates, once, at small widths."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from studies.rates.__main__ import measured, write_page
from studies.rates.rate_experiment import RANK, Study, errors_of
from studies.rates.rate_page import below_bound


@pytest.mark.filterwarnings("ignore:site .* samples for")
def test_rates(tmp_path: Path) -> None:
    """White features have the error (r + 1) / 4n to leading order: within a fifth, at n = 64 and few networks."""
    records = measured(
        Study(alphas=(2.0,), widths=(16, 32, 64), deep_widths=(64, 256, 1024), networks=3, deep_networks=2, inputs=96)
    )
    white = [record for record in records if record.get("alpha", 0) is None]
    n, errors = errors_of(white, "aligned")
    assert n == [16, 32, 64]
    assert errors.mean(0)[-1] == pytest.approx((RANK + 1) / 4 / 64, rel=0.2)
    deep = [record for record in records if "layer" in record]
    assert {record["layer"] for record in deep} == {1, 2, 3}
    for layer in (1, 2, 3):
        _, errors = errors_of([record for record in deep if record["layer"] == layer], "aligned")
        assert errors.mean(0)[-1] < errors.mean(0)[0] / 4  # sixteen times the width
    write_page(records, tmp_path)
    page = (tmp_path / "rates.md").read_text()
    assert "| 2 | kernel |" in page and "| 2 | 3 |" in page
    for name in ("rates.png", "deep_rates.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_bound_is_judged_with_its_intervals() -> None:
    n = [10, 100]
    errors = np.array([[1.0, 0.1], [1.2, 0.12]])
    assert below_bound(n, errors, 0.5) and below_bound(n, errors, 1.0)
    assert not below_bound(n, np.array([[1.0, 0.5], [1.2, 0.51]]), 1.0)
