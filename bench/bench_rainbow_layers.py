# SPDX-License-Identifier: BSD-3-Clause
"""A training step of rainbow layers, against the same layers in plain PyTorch, which stores G.

Forward alone, and forward and backward, of a convolution and of a linear layer, on two threads and on one. Plain torch
computes the projection, the product with G / sqrt(r) and relu. The best plain torch has the product as a convolution of
1 x 1 on any rows (see `convolutions.py`), and relu in place. The error is that of phi, or of the gradient of W.
`bench_memory` prints the memory of a step at its peak, beyond inputs and parameters.
"""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from convolutions import product
from floor import Floor
from race import BEST, OURS, PLAIN, Candidate, Race, entries, relative
from torch import Tensor
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.nn import RainbowConv2d, RainbowLinear

CONVOLUTION = (256, 64, 256, 16, 32)  # N, in, out, rank, side of the maps; 3 x 3 with padding
LINEAR = (4096, 512, 4096, 64)  # N, in, out, rank

Way = Callable[[Tensor, Tensor], Tensor]  # phi from x and W


def race(
    job: str, backward: bool, threads: int, layer: torch.nn.Module, x: Tensor, ways: dict[str, Way], flops: float
) -> Race:
    """All ways with the weights of the layer; `ways` takes x and W in any dtype."""
    W = layer.projection.weight
    above: list[Tensor] = []

    def step(phi_of: Callable[[], Tensor], W: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            if not backward:
                return phi_of()
            with torch.enable_grad():
                return torch.autograd.grad(phi_of(), W, above[0].to(W.dtype))[0]

        return run

    with torch.no_grad():
        phi = layer(x)
    above.append(torch.randn(phi.shape, generator=torch.Generator().manual_seed(3)))
    wide = W.detach().double().requires_grad_()
    exact: list[Tensor] = []

    def error(got: Tensor) -> float:
        if not exact:  # computed once, at the first check
            exact.append(step(lambda: ways[PLAIN](x.double(), wide), wide)().detach())
        return relative(got, exact[0])

    candidates = {OURS: Candidate(step(lambda: layer(x), W), error)}
    candidates |= {name: Candidate(step(lambda way=way: way(x, W), W), error) for name, way in ways.items()}
    return Race(
        f"{job}, {'forward and backward' if backward else 'forward'}",
        candidates,
        Floor({"f32": flops * (3 if backward else 1)}),
        threads=threads,
        variant=threads == 1,
        slack=1e-3 * backward,  # features at their corner, which fall on either side
    )


def convolution(backward: bool, threads: int, N: int, channels: int, n: int, r: int, side: int) -> Race:
    torch.manual_seed(0)
    layer = RainbowConv2d(channels, n, 3, r, seed=1, padding=1)
    x = torch.randn(N, channels, side, side, generator=torch.Generator().manual_seed(2))
    G = rf.gaussian(n, r, seed=layer.features.key, dtype=torch.float64) / r**0.5
    single = G.float().view(n, r, 1, 1)

    def of(x: Tensor, W: Tensor) -> Tensor:
        weight = single if x.dtype == torch.float32 else G.view(n, r, 1, 1)
        return F.conv2d(F.conv2d(x, W, padding=1), weight)

    ways: dict[str, Way] = {PLAIN: lambda x, W: of(x, W).relu(), BEST: lambda x, W: of(x, W).relu_()}
    flops = 2.0 * N * side**2 * r * (9 * channels + n)
    job = f"RainbowConv2d, N {N}, {side} x {side}, in {channels}, out {n}, rank {r}"
    return race(job, backward, threads, layer, x, ways, flops)


def linear(backward: bool, threads: int, N: int, columns: int, n: int, r: int) -> Race:
    torch.manual_seed(0)
    layer = RainbowLinear(columns, n, r, seed=1)
    x = torch.randn(N, columns, generator=torch.Generator().manual_seed(2))
    G = rf.gaussian(n, r, seed=layer.features.key, dtype=torch.float64) / r**0.5
    single = G.float()

    def of(x: Tensor) -> Tensor:
        return single if x.dtype == torch.float32 else G

    ways: dict[str, Way] = {
        PLAIN: lambda x, W: (x @ W.T @ of(x).T).relu(),
        BEST: lambda x, W: product(product(x, W.T), of(x).T).relu_(),
    }
    job = f"RainbowLinear, N {N}, in {columns}, out {n}, rank {r}"
    return race(job, backward, threads, layer, x, ways, 2.0 * N * r * (columns + n))


PEAK = """
import sys, torch
from torch.nn import functional as F
import rainbow_fast as rf
from rainbow_fast.nn import RainbowConv2d, RainbowLinear

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

kind, way, sizes = sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]]
torch.set_num_threads(2)
if kind == "convolution":
    N, channels, n, r, side = sizes
    layer, shape = RainbowConv2d(channels, n, 3, r, seed=1, padding=1), (channels, side, side)
else:
    N, channels, n, r = sizes
    layer, shape = RainbowLinear(channels, n, r, seed=1), (channels,)
G = rf.gaussian(n, r, seed=layer.features.key) / r**0.5
def plain(x):
    z = layer.projection(x)
    return (F.conv2d(z, G.view(n, r, 1, 1)) if kind == "convolution" else z @ G.T).relu_()
step = plain if way == "plain torch" else layer
def run(N):
    x = torch.randn(N, *shape)
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = peak()
    phi = step(x)
    forward, size = peak(), phi.nbytes / 2**20
    phi.sum().backward()
    return (forward - before) / 1024, (peak() - before) / 1024, size
run(16)  # threads and code that come with the first call
print(*run(N))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def bench_memory(kind: str) -> None:
    """Ours needs no more than plain torch, beside 16 MiB for its buffers."""
    peaks = {}
    for way in (OURS, PLAIN):
        words = [kind, way, *map(str, CONVOLUTION if kind == "convolution" else LINEAR)]
        done = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=True)
        forward, both, size = map(float, done.stdout.split())
        print(f"{kind}, {way}: forward {forward:.0f} MiB, with backward {both:.0f} MiB, phi {size:.0f} MiB")
        peaks[way] = both
    assert peaks[OURS] <= peaks[PLAIN] + 16


STEPS = [(backward, threads) for backward in (False, True) for threads in (2, 1)]
bench_convolution = entries(convolution, [(*step, *CONVOLUTION) for step in STEPS], (OURS, PLAIN, BEST))
bench_linear = entries(linear, [(*step, *LINEAR) for step in STEPS], (OURS, PLAIN, BEST))
