# SPDX-License-Identifier: BSD-3-Clause
"""The figure of eigenvalues of random features, read back from its axes."""

import math

import numpy as np
import pytest

from rainbow_fast import plots

pytest.importorskip("matplotlib")

X = np.linspace(0.5, 2.0, 31)


def test_histogram_limit_and_notes(tmp_path):
    values = [0.0, 0.0, 0.5, 1.0, 1.2, 1.9, 7.0, 8.0]
    figure = plots.spectrum_of_features(values, X, 1 / X, atom=0.25, title="relu")
    (axes,) = figure.axes
    heights, edges, _ = axes.patches[0].get_data()
    assert float((heights * np.diff(edges)).sum()) == pytest.approx(4 / 8), "four of eight eigenvalues are in range"
    assert (edges[0], edges[-1]) == (0.5, 2.0)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1 / X)
    assert [text.get_text() for text in axes.texts] == ["not shown: 2 at 0, 2 beyond 2"]
    assert figure.get_suptitle() == "relu"
    plots.save(figure, tmp_path / "it.png", dpi=40)
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")


def test_no_note_if_all_are_shown():
    (axes,) = plots.spectrum_of_features([0.6, 1.0], X, X).axes
    heights, edges, _ = axes.patches[0].get_data()
    assert len(axes.texts) == 0 and float((heights * np.diff(edges)).sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    "values, x, density, atom, message",
    [
        ([[1.0]], X, X, 0, r"wanted shapes \(T,\), \(n,\), \(n,\) with n >= 2, got \(1, 1\), \(31,\), \(31,\)"),
        ([], X, X, 0, r"got \(0,\), \(31,\), \(31,\)"),
        ([1.0], X[:1], X[:1], 0, r"got \(1,\), \(1,\), \(1,\)"),
        ([1.0], X, X[1:], 0, r"got \(1,\), \(31,\), \(30,\)"),
        ([math.nan], X, X, 0, "wanted finite numbers, and densities of at least 0"),
        ([1.0], X, -X, 0, "wanted finite numbers, and densities of at least 0"),
        ([1.0], X[::-1], X, 0, "wanted an x that increases and 0 <= atom <= 1, got atom=0"),
        ([1.0], X, X, 1.5, "wanted an x that increases and 0 <= atom <= 1, got atom=1.5"),
    ],
)
def test_refused(values, x, density, atom, message):
    with pytest.raises(ValueError, match=message):
        plots.spectrum_of_features(values, x, density, atom=atom)
