# SPDX-License-Identifier: BSD-3-Clause
"""The ratios of a race, who counts as a rival, and the list of what is slower."""

import math

import pytest
from floor import Floor
from race import BEST, OURS, PLAIN, Candidate, Race, Result, checked, lines, slower

GIVEN, VARIANT, COARSE = "torch, product alone", "rainbow_fast, of copies", "torch, bfloat16"
ERRORS = {OURS: 1e-9, PLAIN: 1e-7, BEST: 2e-7, COARSE: 1e-2, GIVEN: 1e-7, VARIANT: 1e-9}
SECONDS = {OURS: [2.0, 3.0], PLAIN: [8.0, 8.0], BEST: [1.5, 1.0], COARSE: [0.5], GIVEN: [0.25], VARIANT: [4.0]}


def race(**options) -> Race:
    parts = {GIVEN, VARIANT}
    candidates = {name: Candidate(lambda name=name: name, ERRORS.__getitem__, part=name in parts) for name in ERRORS}
    return Race("job", candidates, Floor(), slack=0.0, **options)


def table(seconds: dict[str, list[float]] = SECONDS) -> dict[str, Result]:
    return {line.name: line for line in lines(race(), "job", ERRORS, seconds)}


def test_ratios_refer_to_the_least_times_of_plain_torch_and_of_the_best() -> None:
    results = table()
    assert [results[name].ratio for name in (OURS, PLAIN, BEST)] == [4.0, 1.0, 8.0]
    assert [results[name].to_best for name in (OURS, PLAIN, BEST)] == [0.5, 0.125, 1.0]


def test_a_rival_does_the_whole_job_as_accurately_as_plain_torch() -> None:
    assert race().rivals(ERRORS) == [PLAIN, BEST]
    assert {line.rival for line in table().values()} == {BEST}


def test_all_ways_that_are_not_ours_are_rivals_if_errors_are_unchecked() -> None:
    unchecked = race(unchecked=True)
    errors, wrong = checked(unchecked)
    assert all(math.isnan(error) for error in errors.values()) and wrong == {}
    assert unchecked.rivals(errors) == [PLAIN, BEST, COARSE]


def test_a_wrong_candidate_has_no_line_and_is_no_best() -> None:
    seconds = {name: times for name, times in SECONDS.items() if name != BEST}
    results = {line.name: line for line in lines(race(), "job", ERRORS, seconds, wrong={BEST: "error nan"})}
    assert BEST not in results and results[OURS].rival == PLAIN and results[OURS].to_best == 4.0


def test_without_times_there_are_no_ratios() -> None:
    assert {(line.ratio, line.share, line.to_best) for line in table({}).values()} == {(0.0, 0.0, 0.0)}


def test_ours_must_be_as_accurate_as_plain_torch() -> None:
    job = race()
    job.candidates[OURS] = Candidate(lambda: OURS, lambda _: 3e-7)
    assert checked(job)[1] == {OURS: f"error 3.00e-07, allowed 2.00e-07 ({PLAIN}: 1.00e-07)"}


def test_what_is_slower_is_listed_with_the_best_rival() -> None:
    assert slower(table().values()) == [f"slower than the best plain torch: job: {OURS} 2000.00 ms, x 0.50 of {BEST}"]


@pytest.mark.parametrize(("ours", "listed"), [(1.05, 0), (1.06, 1)])
def test_the_list_begins_below_0_95(ours: float, listed: int) -> None:
    assert len(slower(table({**SECONDS, OURS: [ours]}).values())) == listed
