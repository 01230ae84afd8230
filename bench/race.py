# SPDX-License-Identifier: BSD-3-Clause
"""Several ways to do one job: each is checked against float64 first, then all are timed in turn, round by round."""

import functools
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from floor import Clock, Floor
from here import level
from tolerance import FACTOR
from torch import Tensor

OURS, PLAIN, PUBLISHED = "rainbow_fast", "plain torch", "published"
AVX2 = "rainbow_fast, AVX2"  # shows the gain when torch's products use the same instructions as ours
BUDGET = 3.0  # seconds a race may take once it has its rounds
ROUNDS = (5, 60)  # at least, at most


@dataclass(frozen=True)
class Candidate:
    run: Callable[[], Any]
    error: Callable[[Any], float]  # the error of what `run` returns, against float64


@dataclass(frozen=True)
class Race:
    """A job and its candidates. The first candidate is ours; ratios refer to the second one.

    The error of ours may be FACTOR times the error of the second, as in the tests, plus `slack`, because the error of
    the second may be zero by luck.
    """

    job: str
    candidates: dict[str, Candidate]
    floor: Floor
    threads: int = 2
    variant: bool = False  # another case of the same job has more threads
    device: str = "cpu"  # on a GPU the clock waits until the GPU has finished
    slack: float = 1e-7
    rounds: int = ROUNDS[0]


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    job: str
    name: str
    seconds: list[float]
    ratio: float  # least time of the plain candidate over least time of this one
    error: float
    share: float  # the floor over the least time of this candidate; 0 if unknown
    rates: dict[str, float]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def with_avx2(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same run with the kernels for AVX2."""

    def lower() -> Any:
        with level("avx2"):
            return run()

    return lower


def relative(got: Tensor, exact: Tensor) -> float:
    """|got - exact|_F / |exact|_F in float64."""
    return float(torch.linalg.vector_norm(got.double() - exact) / torch.linalg.vector_norm(exact))


def after_the_gpu() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def checked(race: Race) -> tuple[dict[str, float], dict[str, str]]:
    """The error of every candidate, and what is wrong with the candidates that must not be timed."""
    errors = {name: candidate.error(candidate.run()) for name, candidate in race.candidates.items()}
    ours, plain, *_ = errors
    allowed = FACTOR * errors[plain] + race.slack
    wrong = {name: f"error {error}" for name, error in errors.items() if not error < float("inf")}
    if not errors[ours] <= allowed:
        wrong[ours] = f"error {errors[ours]:.2e}, allowed {allowed:.2e} ({plain}: {errors[plain]:.2e})"
    return errors, wrong


def timed(race: Race, wrong: dict[str, str], threads: int, clock: Clock) -> dict[str, list[float]]:
    """The seconds of every round of each candidate. Each round runs all candidates, in another order."""
    running = [(name, candidate.run) for name, candidate in race.candidates.items() if name not in wrong]
    seconds: dict[str, list[float]] = {name: [] for name, _ in running}
    start = time.perf_counter()
    for number in range(ROUNDS[1]):
        if number >= race.rounds and time.perf_counter() - start > BUDGET:
            break
        race.floor.measure(threads, clock)
        turn = number % len(running)
        for name, run in running[turn:] + running[:turn]:
            began = clock()
            result = run()
            seconds[name].append(clock() - began)
            del result
    return seconds


@functools.lru_cache(maxsize=1)
def results(build: Callable[..., Race], case: tuple, timing: bool, cpu_time: bool) -> dict[str, Result | str]:
    """The race of a case, run once for all its candidates: for each a line, or what is wrong. Empty if there is none.

    With `cpu_time` it runs on one thread and takes CPU time, which other work on the machine hardly changes.
    """
    before = torch.get_num_threads()
    race = build(*case)
    if cpu_time and race.variant:
        return {}
    threads, clock = (1, time.process_time) if cpu_time else (race.threads, time.perf_counter)
    if race.device == "cuda":
        clock = after_the_gpu
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode(False), torch.no_grad():
            errors, wrong = checked(race)
            seconds = timed(race, wrong, threads, clock) if timing else dict.fromkeys(errors, [0.0])
    finally:
        gc.enable()
        torch.set_num_threads(before)
    plain = min(seconds.get(list(race.candidates)[1], [float("nan")]))
    outcomes: dict[str, Result | str] = dict(wrong)
    job = race.job + ", one thread" * (threads == 1)
    for name in race.candidates:
        if name not in wrong:
            best = min(seconds[name])
            ratio, share = (plain / best, race.floor.seconds() / best) if timing else (0.0, 0.0)
            outcomes[name] = Result(job, name, seconds[name], ratio, errors[name], share, dict(race.floor.rates))
    return outcomes


class Tape:
    """A clock for pytest-benchmark that plays back rounds which were timed in turn with other candidates."""

    __name__ = "tape"

    def __init__(self) -> None:
        self.readings: list[float] = []

    def play(self, seconds: Sequence[float]) -> None:
        self.readings = [reading for s in reversed(seconds) for reading in (s, 0.0)]

    def __call__(self) -> float:
        return self.readings.pop()


tape = Tape()


def entries(build: Callable[..., Race], cases: Sequence[tuple], names: Sequence[str] = (OURS, PLAIN, PUBLISHED)):
    """A pytest-benchmark group for each case of `build`, with an entry for each of its candidates."""

    @pytest.mark.benchmark(timer=tape)
    @pytest.mark.parametrize("name", names)
    @pytest.mark.parametrize("case", cases, ids=lambda case: "-".join(map(str, case)))
    def bench(benchmark, record, request, case: tuple, name: str) -> None:
        outcomes = results(build, case, benchmark.enabled, request.config.getoption("--cpu-time", default=False))
        if not outcomes:
            pytest.skip("the same as another case on one thread")
        result = outcomes[name]
        if isinstance(result, str):
            pytest.fail(f"{name} is wrong and is not timed: {result}", pytrace=False)
        benchmark.group = result.job
        benchmark.extra_info.update(
            error=result.error, ratio_to_plain=result.ratio, share_of_floor=result.share, rates=result.rates
        )
        tape.play(result.seconds)
        benchmark.pedantic(lambda: None, rounds=len(result.seconds))
        record(result)

    return bench
