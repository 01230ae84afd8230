# SPDX-License-Identifier: BSD-3-Clause
"""On a real GPU: every op on every available backend, compared with the CPU; streams, graphs, devices, errors.

Without a GPU the same kernels run in test_triton.py (interpreted) and test_cuda_on_cpu.py (emulated).
"""

import copy
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from here import assert_compiles_once, differing_bits, draw, laid_out
from tolerance import assert_close_to_float64

import rainbow_fast as rf
from rainbow_fast import backend

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
COMPILED = [name for name in ("cuda", "triton") if name in backend.available(GPU)] or ["none"]
OF_FEATURES = [name for name in COMPILED if name != "cuda"] or ["none"]  # which CUDA does not have
FLOATS = (torch.float32, torch.float64)
ALL = (*FLOATS, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("numbers", [rf.gaussian, rf.uniform])
def test_random_numbers_have_the_bits_of_the_cpu(numbers: Callable, name: str, dtype: torch.dtype) -> None:
    at = {"seed": 5, "stream": 9, "row_offset": 2**33 + 1, "col_offset": 3, "dtype": dtype}
    got = numbers(1031, 517, device=GPU, backend=name, **at)
    assert differing_bits(got.cpu(), numbers(1031, 517, **at)) == 0


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", ALL)
def test_cross_covariance(name: str, layout: str, dtype: torch.dtype) -> None:
    x, y = (laid_out(draw(9, c, 11, 13, dtype=dtype, seed=c), layout).relu() for c in (70, 130))
    exact = rf.cross_covariance(x.double(), y.double(), backend="reference")
    plain = torch.einsum("nchw,ndhw->cd", x.float(), y.float())
    got = rf.cross_covariance(x.to(GPU), y.to(GPU), backend=name)
    assert_close_to_float64(got.cpu().float(), exact, plain, terms=x.numel() // x.shape[1])
    again = rf.cross_covariance(x.to(GPU), y.to(GPU), backend=name)
    assert differing_bits(got, again) == 0  # no atomics: the order of sums is fixed
    one = rf.cross_covariance(x.to(GPU), backend=name)
    assert differing_bits(one, one.T) == 0


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", ALL)
def test_sample_project_align(name: str, dtype: torch.dtype) -> None:
    P, at = draw(200, 333, dtype=dtype), {"seed": 3, "row_offset": 2**40}
    G = rf.gaussian(515, 200, dtype=dtype, **at)
    got = rf.sample_project_align(515, P.to(GPU), backend=name, **at)
    assert_close_to_float64(got.cpu(), G.double() @ P.double(), (G.float() @ P.float()).to(dtype), terms=200)
    part = rf.sample_project_align(100, P.to(GPU), seed=3, row_offset=2**40 + 64, backend=name)
    assert differing_bits(got[64:164], part) == 0


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("r", [40, 700])
def test_sample_project_align_in_two_terms(name: str, r: int) -> None:
    P, how = draw(r, 333), {"seed": 3, "precision": "bf16x2"}
    G = rf.gaussian(515, r, dtype=torch.bfloat16, seed=3).double()
    got = rf.sample_project_align(515, P.to(GPU), backend=name, **how)
    size = G.abs() @ P.double().abs()
    assert ((got.cpu() - G @ P.double()).abs() <= 2.0**-16 * size).all()


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_random_features(name: str, dtype: torch.dtype, activation: str) -> None:
    u, x, A = draw(300, 37, dtype=dtype), draw(300, 21, dtype=dtype, seed=1), draw(21, 190, dtype=dtype, seed=2)
    options = {"seed": 4, "activation": activation, "scale": 0.7}
    on_gpu = [t.to(GPU) for t in (u, x, A)]
    exact = rf.random_features(u.double(), 190, backend="reference", **options)
    plain = rf.random_features(u, 190, backend="reference", **options)
    got = rf.random_features(on_gpu[0], 190, backend=name, **options)
    assert_close_to_float64(got.cpu(), exact, plain, terms=37)
    sums = rf.random_features_covariance(on_gpu[1], on_gpu[0], 190, backend=name, **options)
    assert_close_to_float64(sums[0].cpu().to(dtype), x.double().T @ exact, x.T @ plain, terms=300)
    projected = rf.random_features_projection(on_gpu[0], on_gpu[2], backend=name, **options)
    assert_close_to_float64(projected.cpu(), exact @ A.double().T, plain @ A.T, terms=190)
    x_center, center = x.mean(0), plain.mean(0)
    centers = {"x_center": x_center.to(GPU), "center": center.to(GPU)}
    sums = rf.random_features_covariance(on_gpu[1], on_gpu[0], 190, backend=name, **centers, **options)
    exact, plain = exact - center.double(), plain - center
    X = x.double() - x_center.double()
    assert_close_to_float64(sums[0].cpu().to(dtype), X.T @ exact, (x - x_center).T @ plain, terms=300)
    assert_close_to_float64(sums[2].cpu().to(dtype), (exact**2).sum(0), (plain**2).sum(0), terms=300)


@pytest.mark.parametrize("shape", [(64, 64), (96, 700), (300, 40)])
def test_polar(shape: tuple[int, int]) -> None:
    M = draw(*shape)
    got, wanted = rf.polar(M.to(GPU)), rf.polar(M, backend="reference")
    torch.testing.assert_close(got.A.cpu(), wanted.A, rtol=0, atol=1e-6)  # both are rounded results of float64
    # A sum of values that float32 holds to 6e-8 each
    torch.testing.assert_close(got.nuclear_norm.cpu(), wanted.nuclear_norm, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_gradients(name: str) -> None:
    u, A = (draw(*shape, dtype=torch.float64).to(GPU).requires_grad_() for shape in ((12, 5), (3, 20)))
    assert torch.autograd.gradcheck(
        lambda u, A: rf.random_features_projection(u, A, seed=1, activation="gelu", backend=name), (u, A)
    )


# --- streams, graphs, compilation ---


def calls(name: str) -> dict:
    """One call of each op that the backend has, on a tensor x (64, 48)."""
    all_calls = {
        "gaussian": lambda x: x + rf.gaussian(64, 48, seed=1, device=GPU, backend=name),
        "uniform": lambda x: x + rf.uniform(64, 48, seed=1, device=GPU, backend=name),
        "cross_covariance": lambda x: rf.cross_covariance(x, backend=name),
        "sample_project_align": lambda x: rf.sample_project_align(80, x, seed=1, backend=name),
        "random_features": lambda x: rf.random_features(x, 96, seed=1, backend=name),
        "random_features_covariance": lambda x: rf.random_features_covariance(x, x, 96, seed=1, backend=name)[0],
        "random_features_projection": lambda x: rf.random_features_projection(  # A of the CPU needs a copy, and waits
            x, rf.gaussian(20, 96, seed=2, device=GPU, backend=name), seed=1, backend=name
        ),
    }
    return {op: call for op, call in all_calls.items() if name != "cuda" or not op.startswith("random_features")}


@pytest.mark.parametrize(("name", "op"), [(name, op) for name in COMPILED for op in calls(name)])
def test_captured_in_a_graph(name: str, op: str) -> None:
    """Only polar synchronises. A graph of the other ops can be replayed, and follows its input."""
    run, x = calls(name)[op], draw(64, 48).to(GPU)
    wanted = run(x), run(2 * x)
    static, graph = x.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(static)
    for factor, value in zip((1, 2), wanted, strict=True):
        static.copy_(factor * x)
        graph.replay()
        assert differing_bits(out, value) == 0


def test_a_sampled_network() -> None:
    """Forward and backward passes are as on the CPU, and can be captured in a graph: the key stays on the host."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 12), torch.nn.GELU()]
        network = torch.nn.Sequential(*layers, torch.nn.Linear(12, 3)).eval()
    sampled, _ = rf.fit(network, draw(200, 6), holdout=0.0).sample(factor=4, method="calibrated")
    there, x = copy.deepcopy(sampled).to(GPU), draw(50, 6, seed=1)
    results = []
    for module, batch in ((sampled, x.clone()), (there, x.to(GPU))):
        batch.requires_grad_()
        y = module(batch)
        y.square().sum().backward()
        results.append((y.detach().cpu(), batch.grad.cpu()))
    for a, b in zip(*results, strict=True):  # float32 products in another order
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    static, graph = x.to(GPU), torch.cuda.CUDAGraph()
    with torch.no_grad():
        wanted = there(2 * static)
        with torch.cuda.graph(graph):
            out = there(static)
    static.mul_(2)
    graph.replay()
    assert differing_bits(out, wanted) == 0


@pytest.mark.parametrize("name", COMPILED)
def test_runs_on_the_current_stream(name: str) -> None:
    stream, x = torch.cuda.Stream(), torch.zeros(2**22, 16, device=GPU)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        x += 1
        M = rf.cross_covariance(x, backend=name)
    stream.synchronize()
    assert M.eq(2.0**22).all()  # taken before x was written, it would be 0


@pytest.mark.parametrize("name", COMPILED)
def test_threads_whose_launches_differ_in_shared_memory(name: str) -> None:
    """The most shared memory that a kernel may take is a property of the kernel, not of a launch."""

    def last(r: int) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            P = draw(r, 64).to(GPU)
            return [rf.sample_project_align(64, P, seed=1, backend=name) for _ in range(200)][-1].cpu()

    alone = [last(r) for r in (150, 250)]
    with ThreadPoolExecutor(2) as pool:
        for got, wanted in zip(pool.map(last, (150, 250)), alone, strict=True):
            assert differing_bits(got, wanted) == 0


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_once(name: str) -> None:
    x = draw(30, 12).to(GPU)
    keys = [(x, rf.key(seed)) for seed in (1, 2)]
    assert_compiles_once(lambda x, key: rf.sample_project_align(40, x, seed=key, backend=name), keys)
    if name in OF_FEATURES:
        assert_compiles_once(lambda x, key: rf.random_features(x, 40, seed=key, backend=name), keys)


def test_random_features_have_no_cuda_kernels() -> None:
    with pytest.raises(ValueError, match=r"backend='cuda' is not available on cuda: present are (triton, )?reference"):
        rf.random_features(draw(3, 2).to(GPU), 4, seed=1, backend="cuda")


# --- what is refused ---


def test_tensors_on_two_devices() -> None:
    x = draw(10, 3)
    with pytest.raises(ValueError, match=r"y is on cuda:0: wanted the device of x, cpu"):
        rf.cross_covariance(x, x.to(GPU))
    with pytest.raises(ValueError, match=r"A is on cpu: wanted the device of u, cuda:0"):
        rf.random_features_projection(x.to(GPU), draw(4, 8), seed=1)
    with pytest.raises(ValueError, match=r"A is on cpu: wanted the device of L, cuda:0"):
        rf.sample_project_align(4, x.to(GPU), draw(3, 5), seed=1)


def test_the_cpu_kernels_are_not_for_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"backend='cpu' is not available on cuda"):
        rf.gaussian(3, 3, seed=1, device=GPU, backend="cpu")


def test_the_second_gpu(record_property) -> None:
    """With a second GPU: kernels run on the device of their tensors, and do not change the current device."""
    if torch.cuda.device_count() < 2:
        record_property("devices", torch.cuda.device_count())
        return
    x = draw(2000, 40)
    for name, current, device in itertools.product(COMPILED, (0, 1), ("cuda:0", "cuda:1")):
        with torch.cuda.device(current):
            got = rf.gaussian(100, 40, seed=1, device=device, backend=name)
            M = rf.cross_covariance(x.to(device), backend=name)  # in CUDA more shared memory than is the default
            assert torch.cuda.current_device() == current and torch.empty(1, device=GPU).device.index == current
        assert str(got.device) == device and differing_bits(got.cpu(), rf.gaussian(100, 40, seed=1)) == 0
        assert_close_to_float64(M.cpu().float(), x.double().T @ x.double(), x.T @ x, terms=2000)
