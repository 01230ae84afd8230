# SPDX-License-Identifier: BSD-3-Clause
"""The figure of Lyapunov exponents, read back from its axes."""

import math

import numpy as np
import pytest

from rainbow_fast import plots

pytest.importorskip("matplotlib")

EXPONENTS = np.array([[1.2, 0.5, -0.5], [1.0, 0.7, -0.9]])
THEORY, DEVIATION = [1.0, 0.5, -0.6], [0.1, 0.2, 0.4]


def test_points_bars_theory_and_scores(tmp_path):
    figure = plots.lyapunov_spectrum(EXPONENTS, THEORY, DEVIATION, title="width 3")
    above, below = figure.axes
    points, _, (bars,) = above.containers[0]
    np.testing.assert_allclose(points.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(points.get_ydata(), [1.1, 0.6, -0.7])
    low, high = np.array([segment[:, 1] for segment in bars.get_segments()]).T
    np.testing.assert_allclose((high - low) / 2, np.array(DEVIATION) / math.sqrt(2))
    labels = {line.get_label(): line for line in above.lines}
    theory = next(line for label, line in labels.items() if label.startswith("theory"))
    np.testing.assert_allclose(theory.get_ydata(), THEORY)
    assert theory.get_zorder() > points.get_zorder(), "theory is drawn over the estimate"
    assert above.containers[0].get_label() == "estimate, mean of 2 runs"
    np.testing.assert_allclose(below.lines[1].get_ydata(), np.array([1.0, 0.5, -0.25]) * math.sqrt(2))
    assert below.get_ylim() == (-3, 3) and below.get_xlabel() == "index $j$"
    assert figure.get_suptitle() == "width 3"
    plots.save(figure, tmp_path / "it.png", dpi=40)
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")


def test_far_points_stay_in_the_panel():
    below = plots.lyapunov_spectrum([[2.0]], [1.0], [0.1]).axes[1]
    assert below.get_ylim()[1] == pytest.approx(11.5) and below.lines[1].get_ydata()[0] == pytest.approx(10)


@pytest.mark.parametrize(
    "exponents, theory, deviation, message",
    [
        (EXPONENTS, THEORY[:2], DEVIATION, r"wanted shapes \(runs, k\), \(k,\), \(k,\), got \(2, 3\), \(2,\), \(3,\)"),
        (EXPONENTS[0], THEORY, DEVIATION, r"got \(3,\), \(3,\), \(3,\)"),
        (EXPONENTS[:0], THEORY, DEVIATION, r"got \(0, 3\), \(3,\), \(3,\)"),
        (EXPONENTS, THEORY, [0.1, 0.0, 0.1], "wanted finite numbers, and deviations above 0"),
        (EXPONENTS * math.nan, THEORY, DEVIATION, "wanted finite numbers, and deviations above 0"),
    ],
)
def test_refused(exponents, theory, deviation, message):
    with pytest.raises(ValueError, match=f"^exponents, theory, deviation: .*{message}"):
        plots.lyapunov_spectrum(exponents, theory, deviation)
