# SPDX-License-Identifier: BSD-3-Clause
"""A model of the times of the ops on an H100 and an A100: `python bench/gpu_model.py`. Nothing here is measured.

A kernel takes the longest of three times: its bytes at the bandwidth of the memory, its multiply-adds at the peak of
the tensor cores, and its other instructions at one for each scheduler and clock. Kernels one after another take the sum
of their times. This is a lower bound: real kernels reach 60 to 90 % of it. In our kernels float32 means three products
in TF32. In torch it means the CUDA cores, because torch rounds to TF32 only when it is told to.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PER_NORMAL = 44.0  # most instructions; tests/helpers/gpu_check.py checks this
CURAND = 43.0  # likewise, of curand_normal4 with Philox, compiled for sm_90 (cuRAND 10.4): 172 for four


@dataclass(frozen=True)
class Gpu:
    """Rates for each second, from NVIDIA's data sheets (SXM; dense)."""

    name: str
    bytes: float
    peak: dict[str, float]  # flops of tensor cores, by kind; `cuda`: of float32 without tensor cores
    issue: float  # instructions of one lane: schedulers, clock, 32 lanes

    def seconds(self, kernel: "Kernel") -> tuple[float, str]:
        times = {
            "memory": kernel.bytes / self.bytes,
            "tensor cores": sum(flops / self.peak[kind] for kind, flops in kernel.flops.items()),
            "instructions": kernel.instructions / self.issue,
        }
        limit = max(times, key=times.__getitem__)
        return times[limit], limit


H100 = Gpu("H100", 3.35e12, {"bf16": 989e12, "tf32": 495e12, "f64": 67e12, "cuda": 67e12}, 132 * 4 * 1.755e9 * 32)
A100 = Gpu("A100", 2.04e12, {"bf16": 312e12, "tf32": 156e12, "f64": 19.5e12, "cuda": 19.5e12}, 108 * 4 * 1.41e9 * 32)


@dataclass(frozen=True)
class Kernel:
    bytes: float = 0.0
    flops: dict[str, float] | None = None  # type: ignore[assignment]
    instructions: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "flops", self.flops or {})


def product(dtype: str, flops: float, ours: bool) -> dict[str, float]:
    if dtype == "bfloat16":
        return {"bf16": flops}
    if dtype == "bf16x2" and ours:
        return {"bf16": 2 * flops}
    return {"tf32": 3 * flops} if ours else {"cuda": flops}


@dataclass(frozen=True)
class Job:
    name: str
    ours: list[Kernel]
    torch: list[Kernel]  # cuRAND and cuBLAS, one kernel after another


SIZE = {"float32": 4, "bfloat16": 2}
FORMS = {"float32": 4, "bf16x2": 4, "bfloat16": 2}  # of sample_project_align; bf16x2 is float32 in two terms


def jobs() -> Iterator[Job]:
    """The cases of bench_gpu.py."""
    count = 2.0**30
    yield Job(
        "gaussian, 2^30 float32 values",
        [Kernel(4 * count, instructions=PER_NORMAL * count)],
        [Kernel(4 * count, instructions=CURAND * count)],
    )
    for dtype in SIZE:
        b = SIZE[dtype]
        for N, d in ((512 * 1024, 64), (512 * 256, 512), (65536, 2048)):
            read, flops = 2.0 * b * N * d, 2.0 * N * d * d
            yield Job(
                f"cross_covariance {dtype}, {N} samples of {d}",
                [Kernel(read, product(dtype, flops, True))],
                [Kernel(2 * read), Kernel(read, product(dtype, flops, False))],  # the permuted copies, the product
            )
    for dtype, b in FORMS.items():
        for n, r, m in ((65536, 256, 1152), (8192, 256, 4608), (65536, 1024, 1024)):
            written, flops, drawn = float(b * n * m), 2.0 * n * r * m, float(n * r)
            G = [Kernel(4 * drawn, instructions=CURAND * drawn)]
            G += [Kernel(6 * drawn)] if dtype == "bfloat16" else []  # rounding takes another pass
            yield Job(
                f"sample_project_align {dtype}, n {n}, r {r}, m {m}",
                [Kernel(written + b * r * m, product(dtype, flops, True), PER_NORMAL * drawn)],
                [*G, Kernel(b * drawn + written, product(dtype, flops, False))],
            )
    for N, r, n, d in ((65536, 64, 65536, 128), (16384, 256, 65536, 512)):
        features, drawn = float(N * n), float(n * r)
        first, second = 2.0 * features * r, 2.0 * features * d
        fused = Kernel(4.0 * N * (r + d), product("float32", first + second, True), PER_NORMAL * drawn + 4 * features)
        parts = [
            Kernel(4 * drawn, instructions=CURAND * drawn),
            Kernel(4 * features, product("float32", first, False)),
            Kernel(8 * features),  # the non-linearity
            Kernel(4 * features, product("float32", second, False)),
        ]
        for form in ("covariance", "projection"):
            yield Job(f"random_features {form}, N {N}, r {r}, n {n}, d {d}", [fused], parts)


def total(gpu: Gpu, kernels: Iterable[Kernel]) -> tuple[float, str]:
    """The seconds of all kernels together, and what limits the longest one."""
    times = [gpu.seconds(kernel) for kernel in kernels]
    return sum(seconds for seconds, _ in times), max(times)[1]


def main() -> None:
    print("MODEL, not measured: milliseconds at the limits of the hardware\n")
    print(f"| {'job':58} | GPU  | rainbow_fast | limit        | cuRAND + cuBLAS | ratio |")
    print(f"| {'-' * 58} | ---- | -----------: | ------------ | --------------: | ----: |")
    for job in jobs():
        for gpu in (H100, A100):
            (ours, limit), (torch, _) = total(gpu, job.ours), total(gpu, job.torch)
            name = job.name if gpu is H100 else ""
            numbers = f"{1e3 * ours:12.3f} | {limit:12} | {1e3 * torch:15.3f} | {torch / ours:5.2f}"
            print(f"| {name:58} | {gpu.name} | {numbers} |")


if __name__ == "__main__":
    main()
