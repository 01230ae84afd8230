# SPDX-License-Identifier: BSD-3-Clause
"""The place where activations are stored changes no bit, keeps to its budget, and leaves nothing behind."""

import copy
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from architectures import Residual, build
from here import fresh_python, on_small_disk
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp, resnet_cifar
from rainbow_fast.rainbow.option_checks import STORAGES
from rainbow_fast.rainbow.sampling.storage import Storage, choose_storage, keeper

pytestmark = [pytest.mark.filterwarnings("ignore:site .* samples for"), pytest.mark.usefixtures("one_thread")]
METHODS = ("paper", "calibrated")


class Untraceable(nn.Module):
    """A network that reads a value: it has no graph, every site runs from the input, and the input is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.conv1(x))
        assert float(y.max()) >= 0
        return self.head(self.relu2(self.conv2(torch.cat([x, y], 1))).mean((2, 3)))


def model(kind: str = "residual") -> tuple[rf.RainbowModel, Tensor]:
    """Images that begin at an odd address, and several chunks of them, the last one shorter."""
    torch.manual_seed(0)
    net = {
        "residual": lambda: build(Residual),
        "channels_last": lambda: resnet_cifar(8, width=8, image_channels=1).to(memory_format=torch.channels_last),
        "chain": lambda: nn.Sequential(
            *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6).eval()),
            *(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)),
        ),
        "untraceable": Untraceable,
    }[kind]()
    memory = torch.randn(120 * 64 + 1, generator=torch.Generator().manual_seed(1))
    x = memory[1:].view(120, 1, 8, 8)
    return rf.fit(net, (x, torch.arange(120) % 10), batch_size=37), x


def assert_same(a: tuple, b: tuple, x: Tensor) -> None:
    (network, report), (other, other_report) = a, b
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert report.to_dict() | {"storage": ""} == other_report.to_dict() | {"storage": ""}
    assert torch.equal(network(x), other(x))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1, 2], ids=["stored features", "fused"])
@pytest.mark.parametrize("kind", ["residual", "chain", "channels_last", "untraceable"])
def test_the_same_bits_wherever_activations_wait(kind, factor, method, dtype):
    """Networks with skips, a chain, channels_last maps (a file does not keep strides), and one without a graph."""
    fitted, x = model(kind)
    sampled = [fitted.sample(factor=factor, method=method, storage=where, storage_dtype=dtype) for where in STORAGES]
    assert len({report.storage for _, report in sampled}) == 3
    for other in sampled[1:]:
        assert_same(sampled[0], other, x)


@torch.no_grad()
@pytest.mark.parametrize("storage", STORAGES)
def test_the_same_bits_alone_and_among_others(storage):
    """Mixed methods, widths, ranks, classifiers; one network remains the reference for two sites, one skips a site."""
    fitted, x = model()
    names = [s.site.name for s in fitted.sites]
    networks = [
        {"factor": 2, "method": "calibrated", "classifier": "refit"},
        {"sites": names[2:], "rank": 3, "accuracy_profile": True},
        {"sites": [names[0], names[3]], "method": "calibrated", "seed": 1, "classifier": "refit_aligned"},
        {"width": 5, "method": "regression"},
        {"factor": 1},
    ]
    together = fitted.sample_many(networks, storage=storage)
    for options, sampled in zip(networks, together, strict=True):
        assert_same(fitted.sample(**options), sampled, x)


@torch.no_grad()
def test_bfloat16_costs_what_its_precision_says():
    """Every stored value is rounded by at most 2^-9 of itself. The network does not round. Its A comes from means over
    all samples, in which most of the rounding cancels: the logits move by less than 2^-9 of their size."""
    fitted, x = model()
    for method in METHODS:
        exact, rounded = (fitted.sample(factor=4, method=method, storage_dtype=d)[0](x) for d in (None, torch.bfloat16))
        assert 0 < float((rounded - exact).norm() / exact.norm()) < 2**-9


def test_the_choice_follows_budget_and_disk(monkeypatch, tmp_path):
    def chosen(bytes_needed: int, **options) -> str:
        return choose_storage(bytes_needed, rf.Limits(scratch_dir=tmp_path, **options)).kind

    free = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free(1000))
    assert chosen(10**12) == "memory"
    assert chosen(400, memory_budget=400) == "memory"
    assert chosen(400, memory_budget=399) == "file"
    assert chosen(499, memory_budget=0) == "file"
    assert chosen(500, memory_budget=0) == "recompute"  # at most half of the disk
    assert chosen(10, memory_budget=0, storage="memory") == "memory"


def test_a_budget_is_of_all_networks_together():
    fitted, _ = model()
    one = fitted.sample()[1].storage
    assert one.startswith("activations are kept in memory")
    needed = round(float(one.split("(")[1].split(" MB")[0]) * 1e6)
    budget = 2 * needed  # the reference with two networks takes 3 / 2 of the reference with one; with four, 5 / 2
    reports = [fitted.sample_many([{}] * count, memory_budget=budget)[0][1].storage for count in (2, 4)]
    assert "in memory" in reports[0] and "in files" in reports[1]
    halved = fitted.sample(memory_budget=round(0.6 * needed), storage_dtype=torch.bfloat16)[1].storage
    assert "in memory" in halved and "rounded to bfloat16" in halved


@pytest.mark.parametrize(
    "options, message",
    [
        ({"storage": "disk"}, "storage='disk': wanted None or one of memory, file, recompute"),
        ({"storage_dtype": torch.float16}, "storage_dtype=torch.float16: wanted None or torch.bfloat16"),
        ({"memory_budget": -1}, "memory_budget=-1: wanted memory_budget >= 0"),
        ({"memory_budget": 1e9 + 0.5}, "memory_budget=1000000000.5: wanted a whole number of bytes"),
        ({"scratch_dir": "/missing/folder"}, "scratch_dir: no folder /missing/folder"),
    ],
)
def test_what_is_refused(options, message):
    fitted, _ = model()
    with pytest.raises(ValueError, match=message):
        fitted.sample(progress=lambda *_: pytest.fail("computed before it was refused"), **options)
    with pytest.raises(ValueError, match="networks: wanted the options of at least one network, got none"):
        fitted.sample_many([])


def test_files_are_there_meanwhile_and_gone_afterwards(tmp_path):
    fitted, _ = model()
    counts: list[int] = []

    def count(*_) -> None:
        counts.append(sum(path.is_file() for path in tmp_path.rglob("*")))

    fitted.sample(storage="file", scratch_dir=tmp_path, progress=count)
    chunks, lanes, alive = 4, 2, 2  # both data sets; stored at a site: z or phi, and the skip
    assert 0 < max(counts) <= chunks * lanes * alive and list(tmp_path.iterdir()) == []

    def stop(*_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted.sample(storage="file", scratch_dir=tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


PEAK = """
import json, pathlib, torch, rainbow_fast as rf
from memory import status
from torch import nn
torch.set_num_threads(1)

x = torch.randn(3000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
model = rf.fit(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16**3, 10)), x)
peaks = {}
for kind, budget in (("file", 2**26), ("memory", None)):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    _, report = model.sample(memory_budget=budget)
    peaks[kind] = status("VmHWM") - before, report.storage
print(json.dumps(peaks))
"""


def test_what_waits_in_files_takes_no_memory():
    """For 3000 images with maps of 16 x 16 x 16, on two sides, 98 MB are stored. If they are in files, memory has only
    the work on one chunk of 512 images: less than 6 maps of 8.4 MB each."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak of memory cannot be read here")
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back to the system at once, and does not count
    peaks = json.loads(fresh_python(PEAK, **at_once))
    waiting, map_of_chunk = 2 * 3000 * 16**3 * 4, 512 * 16**3 * 4
    assert "in files" in peaks["file"][1] and "in memory" in peaks["memory"][1]
    assert peaks["file"][0] < 6 * map_of_chunk
    assert peaks["memory"][0] > waiting


@torch.no_grad()
def test_batch_sizes_agree_to_the_rounding_of_their_sums():
    """A sum of k products is right to gamma_k = k u / (1 - k u) of the sum of their sizes, in any order (Higham
    2002, section 3.1). Carried through the network, this bounds every logit. Two batch sizes differ by twice that."""
    net = cnn((1, 6, 8), kernel_size=3, image_size=10, classes=5, seed=0)
    x = torch.randn(200, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    network, _ = rf.sample(net, x, factor=3)
    whole, bound, value = network(x), torch.zeros(x.shape, dtype=torch.float64), x.double()

    def gamma(k: int) -> float:
        return k * 2**-24 / (1 - k * 2**-24)

    for layer in network.body:
        if isinstance(layer, rf.RainbowActivation):
            G, A = layer.effective_rows(), layer.A.double() * layer.scale
            bound = mix(G.abs(), bound + gamma(layer.d + 3) * value.abs())  # 3: u / sqrt(d), the rounding of G
            value = mix(G, value).relu()
            bound = mix(A.abs(), bound + gamma(layer.n + 2) * value)  # 2: scale, and its rounding
            value = mix(A, value)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer, sizes = copy.deepcopy(layer).double(), copy.deepcopy(layer).double()
            sizes.weight.abs_()
            assert layer.bias is None
            bound = sizes(bound + gamma(layer.weight[0].numel()) * value.abs())
            value = layer(value)
        else:
            bound, value = layer(bound), layer(value)
    assert ((whole - value).abs() <= bound).all()
    assert bound.max() < 1e-2 * value.abs().mean(), "the bound says nothing"
    for size in (1, 7):
        parts = torch.cat([network(part) for part in x.split(size)])
        assert ((parts - whole).abs() <= 2 * bound).all()


def mix(weights: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("nd,bd...->bn...", weights, x)


@torch.no_grad()
def test_chunk_sizes_agree_to_the_condition_of_the_alignment():
    """In float64, another order of a sum of S products moves M by at most S u |M|, and its polar factor by 2 cond(M)
    times that (Li 1995). A factor of 10 stands for the layers that follow."""
    x = torch.randn(150, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    logits, bounds = [], []
    for chunk in (7, None):
        network, report = rf.sample(build(Residual).double(), x, factor=3, method="calibrated", batch_size=chunk)
        logits.append(network(x))
        bounds.append(sum(10 * 2 * site.M_condition * site.samples * 2**-53 for site in report.sites))
    error = float((logits[1] - logits[0]).norm() / logits[0].norm())
    assert 0 < error <= max(bounds) < 1e-6


@torch.no_grad()
def test_the_same_bits_from_any_address():
    """torch's matrix products round by the address of their input, and images in a mapped file lie anywhere."""
    memory = torch.zeros(40 * 17 + 1)
    x = memory[1:].view(40, 17)
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    sampled = [rf.sample(mlp((17, 5, 3), seed=0), data, method="calibrated") for data in (x, x.clone())]
    assert_same(*sampled, x)


FULL = """
import json, pathlib, shutil, torch, rainbow_fast as rf
from rainbow_fast.networks import mlp
torch.set_num_threads(1)
disk, resume = pathlib.Path({disk!r}), pathlib.Path({resume!r})
x = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
model = rf.fit(mlp((64, 40, 30, 10), seed=0), (x, torch.arange(30) % 10), holdout=0.2)
wanted = model.sample(factor=2, method="calibrated")[0].state_dict()

def sample(room):
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb") as file:
        file.write(b"x" * (shutil.disk_usage(disk).free - room))
    options = dict(method="calibrated", storage="file", scratch_dir=disk, resume_dir=resume)
    torch.empty(10**5).fill_(777)  # what freed memory holds
    try:
        network, _ = model.sample(factor=2, **options)
    except OSError as error:
        assert "scratch_dir: cannot write " in str(error) and f" bytes into {{disk}}" in str(error), error
        assert "(the disk is full)" in str(error) and [path.name for path in disk.iterdir()] == ["ballast"], error
        return "full"
    state = network.state_dict()
    shutil.rmtree(resume)
    assert all(torch.equal(value, state[key]) for key, value in wanted.items()), "another network"
    return "right"

outcomes = [sample(room) for room in range(0, 40960, 2048)]
print(json.dumps(outcomes + [sample(10**5)]))
"""


def test_a_full_disk_is_an_error_and_the_run_then_goes_on_right(tmp_path):
    """A tmpfs of 256 KiB in a mount namespace, filled so far that the writes of a run fail at every place."""
    disk = tmp_path / "disk"
    disk.mkdir()
    outcomes = json.loads(on_small_disk(FULL.format(disk=str(disk), resume=str(tmp_path / "run")), disk, 256))
    assert set(outcomes) == {"full", "right"} and outcomes[0] == "full" and outcomes[-1] == "right"


def test_a_stored_tensor_that_lost_bytes_is_not_loaded(tmp_path):
    keep = keeper(Storage("file", 0), tmp_path)
    cell = keep(torch.arange(1000.0))
    (path,) = tmp_path.iterdir()
    assert torch.equal(cell.load(), torch.arange(1000.0))
    with path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(OSError, match=f"scratch_dir: {path} has 2000 bytes, wanted 4000: it was damaged"):
        cell.load()


GATHERED = """
import resource, torch, rainbow_fast as rf
from torch import nn
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
x = torch.randn(300, 16)
try:
    rf.fit(nn.Sequential(nn.Linear(16, 8), nn.ReLU()), [x[:150], x[150:]], memory_budget=1000, scratch_dir={!r})
except OSError as error:
    assert "scratch_dir: cannot write 19200 bytes into {} (the disk is full)" in str(error), error
else:
    raise SystemExit("no error")
"""


def test_data_that_do_not_fit_on_the_disk_are_an_error(tmp_path):
    fresh_python(GATHERED.format(str(tmp_path), tmp_path))
    assert not list(tmp_path.iterdir())
