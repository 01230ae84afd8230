# SPDX-License-Identifier: BSD-3-Clause
"""A model of the times of the ops on an H100 and an A100: `python bench/gpu_model.py`. Nothing here is measured.

A kernel takes the longest of three times: its bytes at the bandwidth of the memory, its multiply-adds at the peak of
the tensor cores, and its instructions at one for each scheduler and clock. Kernels one after another take the sum of
their times. This is a lower bound: real kernels reach 60 to 90 % of it.

Our kernels are those that run by default (`ON_GPUS` of rainbow_fast/backend.py), with all that they do: numbers of G
once for each time that they are generated, inputs once for each panel that reads them, split planes of P, and in the
hot loop of a product every instruction that `make gpu-check` counts: copies, addresses, splitting. What stays in the
second-level cache (slabs of G, panels of features) has no bytes. A float32 product is three in TF32 or six in bfloat16.

torch's columns are cuRAND and cuBLAS, one kernel after another: float32 on the CUDA cores, as exact as ours; TF32 and
bfloat16 with their larger errors. Their products are taken at the peak, without instructions, as if nothing were lost.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- the table of bench/gpu_model.py -->\n", "<!-- the end of the table -->"
UNIT = 4096.0  # flops of a product of 16 x 8 x 16 numbers
# Instructions of a warp for each such product, on (H100, A100): the larger ends of the column /product of
# `make gpu-check`, all products of a float32 one together. docs/guide/gpus.md has the same numbers.
PER_PRODUCT = {
    ("cross_covariance", "float32"): (39, 72),
    ("cross_covariance", "bfloat16"): (3, 15),
    ("sample_project_align", "float32"): (14, 22),
    ("sample_project_align", "bf16x2"): (8, 10),  # twice those of bfloat16
    ("sample_project_align", "bfloat16"): (4, 5),
    ("random_features covariance, 128 channels", "float32"): (34, 61),
    ("random_features covariance, 512 channels", "float32"): (29, 54),
    ("random_features projection, 128 channels", "float32"): (36, 40),
    ("random_features projection, 512 channels", "float32"): (26, 57),
}
PANEL = 2.0**24  # bytes of G, or of features, that Triton's kernels keep in the second-level cache
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
            "instructions": (kernel.instructions + kernel.loop.get(self.name, 0.0)) / self.issue,
        }
        limit = max(times, key=times.__getitem__)
        return times[limit], limit


H100 = Gpu("H100", 3.35e12, {"bf16": 989e12, "tf32": 495e12, "f64": 67e12, "cuda": 67e12}, 132 * 4 * 1.755e9 * 32)
A100 = Gpu("A100", 2.04e12, {"bf16": 312e12, "tf32": 156e12, "f64": 19.5e12, "cuda": 19.5e12}, 108 * 4 * 1.41e9 * 32)


@dataclass(frozen=True)
class Kernel:
    """A kernel: its bytes, its flops by kind, and its instructions of a lane, the same or by the GPU."""

    bytes: float = 0.0
    flops: dict[str, float] = field(default_factory=dict)
    instructions: float = 0.0
    loop: dict[str, float] = field(default_factory=dict)  # of hot loops, by the name of the GPU


def ours_of(op: str, dtype: str, flops: float, bytes: float, instructions: float = 0.0) -> Kernel:
    """One of our products, with all instructions of its hot loop."""
    kinds = {"bfloat16": {"bf16": flops}, "bf16x2": {"bf16": 2 * flops}}.get(dtype, {"tf32": 3 * flops})
    h100, a100 = (32 * count * flops / UNIT for count in PER_PRODUCT[op, dtype])
    return Kernel(bytes, kinds, instructions, {"H100": h100, "A100": a100})


WAYS = {
    "float32": ("cuda", 4.0),
    "TF32": ("tf32", 4.0),
    "bfloat16": ("bf16", 2.0),
}  # kind of product, bytes of a number


@dataclass(frozen=True)
class Job:
    """A job: our kernels, and those of torch in each kind of numbers in which it does the same job."""

    name: str
    ours: list[Kernel]
    torch: dict[str, list[Kernel]]


def rounded(numbers: float, size: float) -> list[Kernel]:
    """The pass that rounds float32 numbers to bfloat16; none where they stay as they are."""
    return [Kernel((4 + size) * numbers)] if size < 4 else []


def gaussians() -> Iterator[Job]:
    count = 2.0**30
    ours, curand = ([Kernel(4 * count, instructions=each * count)] for each in (PER_NORMAL, CURAND))
    yield Job("gaussian, 2^30 float32 values", ours, {"float32": curand})


def covariances() -> Iterator[Job]:
    for dtype, b in (("float32", 4.0), ("bfloat16", 2.0)):
        for N, d in ((512 * 1024, 64), (512 * 256, 512), (65536, 2048)):
            numbers, flops = 2.0 * N * d, 2.0 * N * d * d
            ours = [ours_of("cross_covariance", dtype, flops, b * numbers)]
            torch = {
                way: [  # the permuted copies (from float32), the product
                    Kernel((b + size) * numbers),
                    Kernel(size * numbers, {kind: flops}),
                ]
                for way, (kind, size) in WAYS.items()
                if dtype == "float32" or way == "bfloat16"
            }
            yield Job(f"cross_covariance {dtype}, {N} samples of {d}", ours, torch)


def alignments() -> Iterator[Job]:
    terms = {"float32": 3, "bf16x2": 2, "bfloat16": 1}  # of P, each in 2 bytes
    for dtype, planes in terms.items():
        for n, r, m in ((65536, 256, 1152), (8192, 256, 4608), (65536, 1024, 1024)):
            b, flops, drawn = 2.0 if dtype == "bfloat16" else 4.0, 2.0 * n * r * m, float(n * r)
            slabs = math.ceil(drawn * 2 * (3 if dtype == "float32" else 1) / PANEL)  # P is read again for each
            ours = [
                Kernel((b + 2 * planes) * r * m),  # the planes of P
                Kernel(instructions=PER_NORMAL * drawn),  # G, once, in slabs
                ours_of("sample_project_align", dtype, flops, b * n * m + 2.0 * planes * r * m * slabs),
            ]
            torch = {}
            for way, (kind, size) in WAYS.items():
                if dtype != "bfloat16" or way == "bfloat16":
                    G = [Kernel(4 * drawn, instructions=CURAND * drawn), *rounded(drawn, size)]
                    torch[way] = [*G, Kernel(size * (drawn + r * m + n * m), {kind: flops})]
            yield Job(f"sample_project_align {dtype}, n {n}, r {r}, m {m}", ours, torch)


def features() -> Iterator[Job]:
    for N, r, n, d in ((65536, 64, 65536, 128), (16384, 256, 65536, 512)):
        count, drawn = float(N * n), float(n * r)
        first, second, panels = 2.0 * count * r, 2.0 * count * d, math.ceil(4 * drawn / PANEL)
        if d > 128:  # a panel of features is written and read, and its neurons need another pass over the inputs
            panels = max(panels, math.ceil(4 * count / PANEL))
        for form in ("covariance", "projection"):
            op = f"random_features {form}, {d} channels"
            read = 4.0 * N * (r * panels + d * panels)
            ours = [ours_of(op, "float32", first + second, read, PER_NORMAL * drawn)]
            torch = {}
            for way, (kind, size) in WAYS.items():
                torch[way] = [
                    Kernel(4 * drawn, instructions=CURAND * drawn),
                    *rounded(drawn, size),
                    Kernel(size * (count + N * r + drawn), {kind: first}),
                    Kernel(2 * size * count),  # the non-linearity
                    Kernel(size * (count + N * d), {kind: second}),
                ]
            yield Job(f"random_features {form}, N {N}, r {r}, n {n}, d {d}", ours, torch)


def jobs() -> Iterator[Job]:
    """The cases of bench_gpu.py."""
    yield from gaussians()
    yield from covariances()
    yield from alignments()
    yield from features()


def total(gpu: Gpu, kernels: Iterable[Kernel]) -> tuple[float, str]:
    """The seconds of all kernels together, and what limits the longest one."""
    times = [gpu.seconds(kernel) for kernel in kernels]
    return sum(seconds for seconds, _ in times), max(times)[1]


def table() -> list[str]:
    """The table in Markdown: our time, what limits it, and the times of torch."""
    lines = ["| job | GPU | ours | limited by | torch, float32 | torch, TF32 | torch, bfloat16 |"]
    lines.append("| --- | --- | ---: | --- | ---: | ---: | ---: |")
    for job in jobs():
        for gpu in (H100, A100):
            ours, limit = total(gpu, job.ours)
            others = [f"{1e3 * total(gpu, job.torch[way])[0]:.3f}" if way in job.torch else "" for way in WAYS]
            name = job.name if gpu is H100 else ""
            lines.append(f"| {name} | {gpu.name} | {1e3 * ours:.3f} | {limit} | {' | '.join(others)} |")
    return lines


def main(page: str = "") -> None:
    """Prints the table, or writes it into the section of a page that has these two comments around it."""
    if not page:
        print("MODEL, not measured: milliseconds at the limits of the hardware", *table(), sep="\n")
        return
    path = Path(page)
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"{page}: wanted the lines {BEGIN.strip()!r} and {END.strip()!r}")
    path.write_text("\n".join([before + begin, *table(), "", end + after]))


if __name__ == "__main__":
    main(*sys.argv[1:])
