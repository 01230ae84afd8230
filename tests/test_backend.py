# SPDX-License-Identifier: BSD-3-Clause
"""backend: what is available, what runs, and the messages if something is missing."""

import os
from types import SimpleNamespace

import pytest
import torch
from here import BACKENDS, LEVELS, ROOT, fresh_python, level

import rainbow_fast as rf
from rainbow_fast import backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOATS = (torch.float32, torch.float64)
KERNELS = SimpleNamespace(levels=lambda: ["baseline", "avx2"], use=lambda level: None)  # stands for the extension
CUDA_KERNELS = SimpleNamespace(toolkit_version=lambda: 13000, driver_version=lambda: 13020)


BUILT = backend.Build(KERNELS)  # with a compiler for the CPU alone


@pytest.fixture(autouse=True)
def compiled_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton does not interpret its kernels unless a test asks for it."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


# --- what is available ---


def test_available() -> None:
    for device in ((), ("cpu",), (CPU,)):
        assert backend.available(*device, build=BUILT) == ["cpu", "reference"]
    assert backend.available("cuda:1", build=BUILT) == ["reference"]  # the compiled kernels are for the CPU
    assert backend.available(build=backend.Build()) == ["reference"]


def test_available_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    build = BUILT._replace(triton=True)
    assert backend.available("cuda", build=build) == ["triton", "reference"]
    assert backend.available(build=build) == ["cpu", "reference"]
    build = build._replace(cuda=CUDA_KERNELS)
    assert backend.available("cuda:1", build=build) == ["cuda", "triton", "reference"]
    assert backend.available("cuda", lacking=("triton",), build=build) == ["cuda", "reference"]
    assert backend.available("cuda", "random_features", build=build) == ["triton", "reference"]  # no CUDA kernel
    assert backend.available("cuda", "random_features", ("triton",), build=build) == ["reference"]
    monkeypatch.setattr(torch.version, "hip", "6.4")
    # ROCm calls its devices cuda, but runs no CUDA kernels.
    assert backend.available("cuda", build=build) == ["triton", "reference"]


def test_triton_runs_on_the_cpu_where_it_interprets(monkeypatch: pytest.MonkeyPatch) -> None:
    build = BUILT._replace(triton=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.available(build=build) == ["cpu", "triton", "reference"]
    assert backend.choose(None, CPU, torch.float32, FLOATS, build=build) == "cpu"
    assert backend.available(build=BUILT) == ["cpu", "reference"]


def test_kernels_for_gpus_are_those_of_the_table() -> None:
    """An op of the table has a file for each of its backends, and the other way round."""
    files = {"cuda": "csrc/cuda/{}.cu", "triton": "rainbow_fast/triton_kernels/{}.py"}
    for op, orders in backend.ON_GPUS.items():
        for order in orders.values():
            assert set(order) == {name for name, file in files.items() if (ROOT / file.format(op)).exists()}, op
    assert {path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")} <= {*backend.ON_GPUS, "kernels"}


@pytest.mark.parametrize(
    ("major", "chosen"), [(7, "cuda"), (8, "cuda"), (9, "triton"), (10, "triton"), (12, "cuda"), (13, "cuda")]
)
def test_the_order_of_a_compute_capability(major: int, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = BUILT._replace(cuda=CUDA_KERNELS, triton=True)
    orders = {8: ("cuda", "triton"), 9: ("triton", "cuda"), 12: ("cuda", "triton")}
    monkeypatch.setitem(backend.ON_GPUS, "polar", orders)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert backend.available(CUDA, "polar", build=build)[0] == chosen
    without = build._replace(triton=False)
    assert backend.available(CUDA, "polar", build=without) == ["cuda", "reference"]


@pytest.mark.parametrize("op", backend.ON_GPUS)
def test_an_op_without_cuda_kernels_refuses_them(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = BUILT._replace(cuda=CUDA_KERNELS, triton=True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    if "cuda" in backend.ON_GPUS[op][8]:
        assert backend.choose("cuda", CUDA, torch.float32, FLOATS, op, build=build) == "cuda"
        return
    assert backend.choose(None, CUDA, torch.float32, FLOATS, op, build=build) == "triton"
    with pytest.raises(ValueError, match=r"backend='cuda' is not available on cuda: present are triton, reference$"):
        backend.choose("cuda", CUDA, torch.float32, FLOATS, op, build=build)


@pytest.mark.parametrize(
    ("extension", "wanted", "level"),
    [(None, None, None), (KERNELS, None, "avx2"), (KERNELS, "", "avx2"), (KERNELS, "baseline", "baseline")],
    ids=["not-built", "best", "empty-is-unset", "lower"],
)
def test_selected_level(extension: object, wanted: str | None, level: str | None) -> None:
    assert backend._select(extension, wanted) == level


def test_level_without_kernels_is_an_error() -> None:
    with pytest.raises(ImportError, match=r"RAINBOW_FAST_ISA='avx2': this build on this machine can run no compiled"):
        backend._select(None, "avx2")


def test_level_that_cannot_run_is_an_error_of_the_first_op() -> None:
    code = """
import torch, rainbow_fast as rf
for call in (lambda: rf.gaussian(2, 3, seed=0), lambda: rf.polar(torch.ones(2, 3)), rf.backend.kernels):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    ran = ", ".join(LEVELS) or "no compiled kernels"
    message = f"RAINBOW_FAST_ISA='sse9': this build on this machine can run {ran}"
    assert fresh_python(code, RAINBOW_FAST_ISA="sse9").splitlines() == [message] * 3


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
def test_level_in_use() -> None:
    asked = os.environ.get(backend.ISA_VARIABLE)
    assert backend.isa == (asked or LEVELS[-1])
    order = ("baseline", "avx2", "amx_emulated", "avx512", "avx512_bf16", "amx")  # the slow emulation is never the last
    assert LEVELS == [name for name in order if name in LEVELS]
    with pytest.raises(ValueError, match=r"this build on this machine has no level sse9"):
        backend.kernels().use("sse9")


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
def test_variable_is_read_once() -> None:
    code = """
import os, rainbow_fast
os.environ["RAINBOW_FAST_ISA"] = "no such level"
import rainbow_fast.backend as backend
rainbow_fast.gaussian(3, 3, seed=1)
print(backend.isa)
"""
    assert fresh_python(code, RAINBOW_FAST_ISA="baseline").strip() == "baseline"


@pytest.mark.skipif("avx2" not in LEVELS, reason="needs two levels")
def test_levels_are_other_code() -> None:
    """`level` switches the instruction set: without fused multiply-adds, sums round differently."""
    u, results = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)), []
    for name in ("baseline", "avx2"):
        with level(name):
            results.append(rf.random_features(u, 30, seed=1))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)  # sums of 40 terms of order one
    assert not torch.equal(*results)


# --- which runs ---


@pytest.mark.parametrize(
    ("name", "device", "chosen"),
    [(None, CPU, "cpu"), ("cpu", CPU, "cpu"), ("reference", CPU, "reference"), (None, CUDA, "reference")],
    ids=["best", "named", "reference-named", "nothing-built-for-the-device"],
)
def test_choose(name: str | None, device: torch.device, chosen: str) -> None:
    assert backend.choose(name, device, torch.float32, FLOATS, build=BUILT) == chosen


def test_reference_where_nothing_is_built() -> None:
    assert backend.choose(None, CPU, torch.float32, FLOATS, build=backend.Build()) == "reference"
    code = """
import sys
sys.modules["rainbow_fast._C"] = None  # as where no compiler was
import rainbow_fast as rf
print(rf.backend.available(), rf.backend.isa, rf.gaussian(5, 6, seed=1).tolist())
try:
    rf.gaussian(5, 6, seed=1, backend="cpu")
except ValueError as error:
    print(error)
"""
    numbers = rf.gaussian(5, 6, seed=1).tolist()
    message = "backend='cpu' is not available on cpu: present are reference"
    assert fresh_python(code).splitlines() == [f"['reference'] None {numbers}", message]


def test_import_without_kernels_warns_once() -> None:
    """The warning names what is lost and how to get it, and points to the line that imports the package."""
    code = """
import sys, warnings
sys.modules["rainbow_fast._C"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    import rainbow_fast
    import rainbow_fast.backend, rainbow_fast.analysis
    rainbow_fast.gaussian(5, 6, seed=1)
[warning] = [w for w in caught if "rainbow_fast" in str(w.message)]
print(warning.category.__name__, warning.filename, warning.lineno, warning.message)
"""
    printed = fresh_python(code).strip()
    assert printed == f"UserWarning <string> 6 {backend.WITHOUT_KERNELS}"
    for part in ("without its compiled kernels", "slower", "GCC 12", "clang 14", "pip install --force-reinstall"):
        assert part in printed


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
def test_import_with_kernels_warns_of_nothing() -> None:
    assert fresh_python("import warnings; warnings.simplefilter('error', UserWarning); import rainbow_fast") == ""


@pytest.mark.parametrize("name", ["cuda", "triton", "", "CPU"])
def test_missing_backend_is_named_with_those_present(name: str) -> None:
    with pytest.raises(ValueError, match=rf"backend='{name}' is not available on cpu: present are cpu, reference$"):
        backend.choose(name, CPU, torch.float32, FLOATS, build=BUILT)
    with pytest.raises(ValueError, match=r"backend='cpu' is not available on cuda: present are reference$"):
        backend.choose("cpu", CUDA, torch.float32, FLOATS, build=BUILT)


@pytest.mark.parametrize("name", [None, "cpu"])
def test_dtype_never_falls_back(name: str | None) -> None:
    message = (
        r"dtype torch.int8 is not supported by backend 'cpu' \(it takes float32, float64\): use backend='reference'$"
    )
    with pytest.raises(TypeError, match=message):
        backend.choose(name, CPU, torch.int8, FLOATS, build=BUILT)
    assert backend.choose("reference", CPU, torch.int8, FLOATS, build=BUILT) == "reference"


# --- what a GPU needs ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("triton", r"'triton' is not available on cuda: present are reference \(triton is not installed: pip install"),
        (
            "cuda",
            r"'cuda' is not available on cuda: present are reference \(built without nvcc, .* RAINBOW_FAST_CUDA=1",
        ),
    ],
)
def test_what_is_missing_on_a_gpu_says_how_to_get_it(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend.choose(name, CUDA, torch.float32, FLOATS, build=BUILT)


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (0, r"backend='cuda': no NVIDIA driver is loaded; wanted one for CUDA 13\.0"),
        (
            12040,
            r"backend='cuda': the kernels were built with CUDA 13\.0, the driver takes up to 12\.4: update the driver",
        ),
    ],
)
@pytest.mark.parametrize("name", [None, "cuda"])
def test_driver_too_old(name: str | None, driver: int, message: str) -> None:
    kernels = SimpleNamespace(toolkit_version=lambda: 13000, driver_version=lambda: driver)
    build = BUILT._replace(cuda=kernels, triton=True)
    with pytest.raises(RuntimeError, match=message):
        backend.choose(name, CUDA, torch.float32, FLOATS, build=build)
    assert backend.choose("triton", CUDA, torch.float32, FLOATS, build=build) == "triton"


def test_device_too_old() -> None:
    backend._check_capability("NVIDIA A100", (8, 0))
    with pytest.raises(
        RuntimeError, match=r"NVIDIA T4 has compute capability 7\.5, wanted 8\.0 or newer: use backend='t"
    ):
        backend._check_capability("NVIDIA T4", (7, 5))


def test_versions() -> None:
    versions = backend.cuda_versions(BUILT._replace(cuda=CUDA_KERNELS))
    assert versions == {"toolkit": "13.0", "torch": torch.version.cuda or "none", "driver": "13.2"}
    assert backend.cuda_versions(BUILT)["toolkit"] == "none"
