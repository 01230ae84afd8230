# SPDX-License-Identifier: BSD-3-Clause
"""Former names of options work on the command line, with a warning."""

import warnings

import pytest

from rainbow_fast.cli.former import present


@pytest.mark.parametrize(
    ("arguments", "now"),
    [
        (["sample", "--pointwise", "a:B", "--pointwise=c:D"], ["sample", "--pointwise-modules", "a:B"]),
        (["plan", "--align", "flattened", "--seed", "1"], ["plan", "--align-flattened", "--seed", "1"]),
        (["plan", "--align=flattened"], ["plan", "--align-flattened"]),
        (["plan", "--align", "channels", "x"], ["plan", "x"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_former_names_are_translated(arguments, now):
    with pytest.warns(FutureWarning, match="the old name will be removed in the next release"):
        assert present(arguments)[: len(now)] == now


@pytest.mark.parametrize(
    "arguments", [["plan", "--align-flattened"], ["plan", "--align", "pixels"], ["plan", "--align"]]
)
def test_what_is_no_former_name_stays(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [word for word in present(arguments) if word] == arguments
