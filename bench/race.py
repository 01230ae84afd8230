# SPDX-License-Identifier: BSD-3-Clause
"""Several ways to do one job: each is checked against float64 first, then all are timed in turn, round by round."""

import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from floor import Clock, Floor
from here import level
from tolerance import FACTOR
from torch import Tensor

OURS, PLAIN, PUBLISHED = "rainbow_fast", "plain torch", "published"
BEST = "best plain torch"  # where it is not what a user writes first
AVX2 = "rainbow_fast, AVX2"  # shows the gain when torch's products use the same instructions as ours
BUDGET = 3.0  # seconds a race may take once it has its rounds
ROUNDS = (5, 60)  # at least, at most


@dataclass(frozen=True)
class Candidate:
    """A way to do the job.

    With `part` it only shows where a gain comes from: it does less than the job, or is a way of ours that no user
    takes. Then it is no rival, and it may be slower than the rivals.
    """

    run: Callable[[], Any]
    error: Callable[[Any], float]  # the error of what `run` returns, against float64
    part: bool = False


@dataclass(frozen=True)
class Race:
    """A job and its candidates. The first candidate is ours; the column "x plain" refers to the second one.

    The error of ours may be FACTOR times the error of the second, as in the tests, plus `slack`, because the error of
    the second may be zero by luck. The same holds for a rival: one with a larger error is timed, but is not the best.
    """

    job: str
    candidates: dict[str, Candidate]
    floor: Floor
    threads: int = 2
    variant: bool = False  # another case of the same job has more threads
    device: str = "cpu"  # on a GPU the clock waits until the GPU has finished
    slack: float = 1e-7
    rounds: int = ROUNDS[0]
    budget: float = BUDGET
    unchecked: bool = False  # float64 would take too long: errors are NaN, and nothing runs before it is timed

    def allowed(self, errors: dict[str, float]) -> float:
        """The largest error of a candidate that does the job."""
        return FACTOR * errors[list(self.candidates)[1]] + self.slack

    def rivals(self, errors: dict[str, float]) -> list[str]:
        """The candidates that are not ours, do the whole job, and are accurate enough."""
        return [
            name
            for name, candidate in self.candidates.items()
            if not is_ours(name) and not candidate.part and not errors[name] > self.allowed(errors)
        ]


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    job: str
    name: str
    seconds: list[float]
    ratio: float  # least time of the plain candidate over least time of this one
    error: float  # NaN if it was not checked
    share: float  # the floor over the least time of this candidate; 0 if unknown
    rates: dict[str, float]
    to_best: float = 0.0  # least time of the fastest rival over least time of this one; 0 if there is no rival
    rival: str = ""  # the fastest rival
    listed: bool = False  # ours, and a way that users take

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def is_ours(name: str) -> bool:
    return name.startswith(OURS)


def with_avx2(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same run with the kernels for AVX2."""

    def lower() -> Any:
        with level("avx2"):
            return run()

    return lower


def at_precision(precision: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same run with torch's setting of the precision of float32 products, which ours reads, too."""

    def set_before() -> Any:
        torch.set_float32_matmul_precision(precision)
        try:
            return run()
        finally:
            torch.set_float32_matmul_precision("highest")

    return set_before


def relative(got: Tensor, exact: Tensor) -> float:
    """|got - exact|_F / |exact|_F in float64."""
    return float(torch.linalg.vector_norm(got.double() - exact) / torch.linalg.vector_norm(exact))


def after_the_gpu() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def checked(race: Race) -> tuple[dict[str, float], dict[str, str]]:
    """The error of every candidate, and what is wrong with the candidates that must not be timed."""
    if race.unchecked:
        return dict.fromkeys(race.candidates, float("nan")), {}
    errors = {name: candidate.error(candidate.run()) for name, candidate in race.candidates.items()}
    ours, plain, *_ = errors
    allowed = race.allowed(errors)
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
        if number >= race.rounds and time.perf_counter() - start > race.budget:
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
            seconds = timed(race, wrong, threads, clock) if timing else {}
    finally:
        gc.enable()
        torch.set_num_threads(before)
    job = race.job + ", one thread" * (threads == 1)
    return {**wrong, **{line.name: line for line in lines(race, job, errors, seconds, wrong)}}


def lines(
    race: Race, job: str, errors: dict[str, float], seconds: dict[str, list[float]], wrong: Container[str] = ()
) -> list[Result]:
    """The line of each candidate that is not wrong. Without `seconds` nothing was timed."""
    least = {name: min(times) for name, times in seconds.items()}
    plain = least.get(list(race.candidates)[1], float("nan"))
    rival = min((name for name in race.rivals(errors) if name in least), key=least.__getitem__, default="")
    results = []
    for name, candidate in race.candidates.items():
        if name in wrong:
            continue
        ratios = (0.0, 0.0, 0.0)
        if name in least:
            ratios = tuple(s / least[name] for s in (plain, race.floor.seconds(), least.get(rival, 0.0)))
        ratio, share, to_best = ratios
        listed = is_ours(name) and not candidate.part
        rates = dict(race.floor.rates)
        times = seconds.get(name, [0.0])
        results.append(Result(job, name, times, ratio, errors[name], share, rates, to_best, rival, listed))
    return results


def slower(results: Iterable[Result], bound: float = 0.95) -> list[str]:
    """A sentence for each way of ours that takes more than 1 / `bound` times as long as the fastest rival."""
    return [
        f"slower than the best plain torch: {r.job}: {r.name} {1e3 * r.best:.2f} ms, x {r.to_best:.2f} of {r.rival}"
        for r in results
        if r.listed and 0 < r.to_best < bound
    ]


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
            error=None if math.isnan(result.error) else result.error,
            ratio_to_plain=result.ratio,
            ratio_to_best=result.to_best,
            best=result.rival,
            share_of_floor=result.share,
            rates=result.rates,
        )
        tape.play(result.seconds)
        benchmark.pedantic(lambda: None, rounds=len(result.seconds))
        record(result)

    return bench
