# SPDX-License-Identifier: BSD-3-Clause
"""Shared by the tests of the ops: what can run here, how to switch it, and how to compare results."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from rainbow_fast import backend

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("RAINBOW_FAST_DATA", ROOT.parent / "shared" / "data"))
if os.environ.get("RAINBOW_FAST_TEST_BACKEND") == "cuda":  # the CUDA kernels, emulated
    from cuda_on_cpu import build

    backend.BUILD = backend.BUILD._replace(cuda=build.load().cuda, cuda_devices=("cpu", "cuda"))
PRESENT = backend.available("cpu")
LEVELS = backend.kernels().levels() if "cpu" in PRESENT else []  # instruction sets that this machine runs
BACKENDS = [os.environ["RAINBOW_FAST_TEST_BACKEND"]] if "RAINBOW_FAST_TEST_BACKEND" in os.environ else PRESENT


@contextmanager
def level(name: str) -> Iterator[None]:
    """A context in which the kernels of another instruction set run."""
    backend.kernels().use(name)
    try:
        yield
    finally:
        backend.kernels().use(backend.isa)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_for_threads(compute: Callable[[], Tensor | tuple[Tensor, ...]]) -> None:
    """Checks for equal bits on one thread and on more. Three and five threads do not divide the work evenly."""
    results = []
    for count in (1, 2, 3, 5):
        with threads(count):
            result = compute()
            results.append(result if isinstance(result, tuple) else (result,))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert differing_bits(a, b) == 0


def differing_bits(a: Tensor, b: Tensor) -> int:
    """How many entries differ in any bit. Here -0 differs from 0, and a NaN equals itself."""
    assert a.shape == b.shape and a.dtype == b.dtype, f"{a.dtype} {tuple(a.shape)}, {b.dtype} {tuple(b.shape)}"
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return int((a.contiguous().view(integer) != b.contiguous().view(integer)).sum())


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, drawn in float64 and rounded to dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers (N, d, *space) in another arrangement of memory."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":  # channels side by side, for any number of axes of positions
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":  # every axis has its own stride; positions share one
        wide = torch.full([2 * x.shape[0], x.shape[1] + 3, *x.shape[2:], 2], torch.nan, dtype=x.dtype)
        view = wide[::2, 1:-2, ..., 0]
        return view.copy_(x)
    if layout == "transposed":  # positions have no common stride: last axis first, images last
        return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    raise ValueError(layout)


def assert_compiles_once(function: Callable[..., Tensor], calls: list[tuple], **options) -> None:
    """torch.compile(fullgraph=True) gives the results of `function`, and compiles only at the first of the calls."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")  # traces as inductor does, and generates no code
    fast = torch.compile(function, backend=counter, fullgraph=True, **options)
    counts = []
    for arguments in calls:
        assert differing_bits(fast(*arguments), function(*arguments)) == 0
        counts.append(counter.frame_count)
    # One frame. With dynamic floats, dynamo may pass it on twice during this compilation.
    assert 1 <= counts[0] <= 2 and set(counts) == {counts[0]}, f"compilations after each call: {counts}"


def on_small_disk(code: str, folder: Path, kibibytes: int) -> str:
    """What `code` prints in a new process, for which `folder` is a file system of this size, in memory."""
    mount = f"mount -t tmpfs -o size={kibibytes}k tmpfs {shlex.quote(str(folder))}"
    return _python(["unshare", "--mount", "--map-root-user", "sh", "-c", f'{mount} && exec "$@"', "sh"], code)


def fresh_python(code: str, *arguments: object, folder: Path = ROOT, **environment: str) -> str:
    """What `code` prints in a new process in a folder. The process may import the tests and what they share."""
    return _python([], code, *arguments, folder=folder, **environment)


def _python(before: list[str], code: str, *arguments: object, folder: Path = ROOT, **environment: str) -> str:
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "tests", "tests/helpers", "tests/ops"))
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@contextmanager
def random_state_untouched() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global random state has changed"
