# SPDX-License-Identifier: BSD-3-Clause
"""What launches ask of Triton's compiler and of a device. The test needs neither.

The interpreter takes any integers. The compiler makes integers that equal 1 constants of the kernel, and the others 32
or 64 bits wide. A device limits the grid.
"""

import functools
import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton, which compiles without a GPU")
from gpu_check import TARGETS  # noqa: E402
from triton._C.libtriton import ir  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, make_backend  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402

from rainbow_fast.ops.wavelet_bank import WaveletBank  # noqa: E402
from rainbow_fast.ops.wavelet_modulus_arguments import in_tiles, output_of  # noqa: E402
from rainbow_fast.triton_kernels import cross_covariance  # noqa: E402
from rainbow_fast.triton_kernels.gaussian import gaussian  # noqa: E402
from rainbow_fast.triton_kernels.lanczos import largest_eigenvalue  # noqa: E402
from rainbow_fast.triton_kernels.polar import combine  # noqa: E402
from rainbow_fast.triton_kernels.random_features import (  # noqa: E402
    random_features,
    random_features_covariance,
    random_features_projection,
)
from rainbow_fast.triton_kernels.random_features_gradient import random_features_gradient  # noqa: E402
from rainbow_fast.triton_kernels.sample_project_align import sample_project_align  # noqa: E402
from rainbow_fast.triton_kernels.uniform import uniform  # noqa: E402
from rainbow_fast.triton_kernels.wavelet_modulus import wavelet_modulus, wavelet_modulus_gradient  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

WHERE = [2**40 + 5, 3, 0, 0]


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> set[tuple]:
    """The launched kernels, each as it was specialised, compiled up to the compiler's own language."""
    target = GPUTarget(*TARGETS[0].triton)
    backend, seen = make_backend(target), set()
    binder = functools.cache(lambda k: create_function_from_signature(k.signature, k.params, backend))

    def run(kernel: JITFunction, *arguments, grid: tuple[int, ...], warmup: bool, **options) -> None:
        assert 0 < min(grid) and grid[0] < 2**31 and all(size < 2**16 for size in grid[1:]), (kernel.__name__, grid)
        options |= {"debug": False, "instrumentation_mode": ""}
        bound, specialized, _ = binder(kernel)(*arguments, **options)
        key = (kernel.__name__, str(specialized))
        if key not in seen:
            seen.add(key)
            chosen, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialized, None)
            source, context = ASTSource(kernel, signature, constants, attributes), ir.context()
            ir.load_dialects(context)
            backend.load_dialects(context)
            codegen = backend.get_codegen_implementation(chosen), backend.get_module_map()
            source.make_ir(target, chosen, *codegen, context)

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    return seen


def random_features_calls(N: int, r: int, n: int, d: int, space: tuple[int, ...], dtype: torch.dtype, device="cpu"):
    """Calls random_features, its passes and their gradient on tensors of these sizes."""

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    u, x, shift, A = zeros(N, r, *space), zeros(N, d, *space), zeros(N, *space), zeros(d, n)
    rest = (shift, WHERE, "silu", 0.01, 1.0, "high" if dtype == torch.float32 else "highest")
    sums = [zeros(*shape, dtype=torch.float64) for shape in ((d, n), (n,), (n,))]
    above = (None, zeros(n), zeros(n), [x], [A])
    yield lambda: random_features(zeros(N, n, *space), u, *rest)
    yield lambda: random_features_covariance(*sums, x, None, None, u, *rest)
    yield lambda: random_features_covariance(*sums, x, zeros(d), zeros(n), u, *rest)
    yield lambda: random_features_projection(zeros(N, d, *space), u, A, *rest)
    yield lambda: random_features_gradient(zeros(N, r, *space), zeros(N, *space), u, shift, WHERE, n, *rest[2:], *above)


def of_sides(x: Tensor, *ys: Tensor) -> None:
    sides = [side.view(*side.shape, *[1] * (4 - side.dim())) for side in (x, *ys)]
    none = [None] * len(sides)
    width = sum(y.shape[1] for y in ys or [x])
    out = torch.zeros(x.shape[1], width, dtype=torch.float64, device=x.device)
    cross_covariance.cross_covariance(out, sides, none, none, not ys, "relu", 0.01)


def of_wavelets(z: Tensor, bank: WaveletBank, skip: bool) -> None:
    shape, dtype = output_of(z, bank, skip)
    out = torch.empty(shape, dtype=dtype, device=z.device)
    filters = in_tiles(bank, *z.shape[2:4], torch.promote_types(z.dtype, torch.float32), z.device)
    wavelet_modulus(out, z, skip, filters)
    wavelet_modulus_gradient(torch.empty_like(z), z, out, skip, filters)


# N, r, n, d, space: ones wherever a size can be 1
ONES = [(1, 1, 1, 1, ()), (5, 1, 1, 1, (2, 3)), (1, 1, 5, 5, (1,)), (3, 2, 3, 1, (7, 1)), (1, 3, 3, 140, ())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", ONES, ids=str)
def test_random_features_where_sizes_are_one(launched: set, sizes: tuple, dtype: torch.dtype) -> None:
    for call in random_features_calls(*sizes, dtype):
        call()
    assert len(launched) >= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_other_ops_where_sizes_are_one(launched: set, dtype: torch.dtype) -> None:
    for shape in ((1, 1), (3, 1, 2, 5), (7, 1, 1, 1)):
        x = torch.zeros(shape, dtype=dtype)
        of_sides(x)
        of_sides(x, torch.zeros(shape[0], 5, *shape[2:], dtype=dtype))
    for n, r, m in ((1, 1, 1), (1, 300, 100), (5, 1, 1)):
        gaussian(torch.zeros(n, m, dtype=dtype), WHERE)
        uniform(torch.zeros(n, m, dtype=dtype), WHERE)
        sample_project_align(torch.zeros(n, m, dtype=dtype), torch.zeros(r, m, dtype=dtype), dtype, WHERE, 1.0)
    bank = WaveletBank.named("standard")
    for shape in ((1, 1, 2, 2), (1, 1, 32, 3), (3, 1, 17, 2, 2), (1, 5, 2, 4)):
        of_wavelets(torch.zeros(shape, dtype=dtype), bank, skip=shape[1] == 5)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    largest_eigenvalue(one, one[0, 0])
    combine(one[None], one[None], torch.zeros(1, 1, 2, dtype=torch.float64))
    assert len(launched) >= 10


def test_the_largest_sizes(launched: set) -> None:
    """More rows and samples than 2^31: counts have 64 bits, and devices accept the grids."""
    gaussian(torch.empty(2**32, 600, device="meta"), WHERE)
    uniform(torch.empty(2**32, 600, device="meta"), WHERE)
    features, covariance, centered, *_ = random_features_calls(2**19, 16, 100, 32, (64, 65), torch.float32, "meta")
    features()
    covariance()
    centered()
    for call in random_features_calls(5 * 10**4, 512, 2 * 10**4, 512, (), torch.float32, "meta"):
        call()
    of_sides(torch.empty(2**24, 512, 16, 17, device="meta"))
    of_wavelets(torch.empty(2**24, 512, 4, 4, device="meta"), WaveletBank.named("b"), True)
    for r in (16, 512):  # the kept rows of G, and slabs of them
        P = torch.empty(r, 9 * 10**6, device="meta")
        sample_project_align(torch.empty(300, 9 * 10**6, device="meta"), P, P.dtype, WHERE, 1.0)
    assert any("i64" in key[1] for key in launched)


def test_seeds_steps_and_rows_compile_nothing_again(launched: set) -> None:
    for n, seed in ((1000, 0), (1001, 1), (16, 2**40)):
        gaussian(torch.zeros(n, 64), [seed, seed % 17, n, 4 * n])
        uniform(torch.zeros(n, 64), [seed, seed % 17, n, 4 * n])
    assert len(launched) == 2
    largest_eigenvalue(torch.eye(40, dtype=torch.float64)[None], torch.ones(40, dtype=torch.float64))
    assert len(launched) == 4  # a step, all 32 of them, and the end
