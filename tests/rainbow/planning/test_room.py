# SPDX-License-Identifier: BSD-3-Clause
"""Widths that no memory holds are refused before anything is drawn, and others never are."""

import os
from pathlib import Path

import pytest
import torch
from here import fresh_python

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp
from rainbow_fast.rainbow.laws.orthonormal_rows import Orthonormal
from rainbow_fast.rainbow.model import SampleOptions
from rainbow_fast.rainbow.planning import room
from rainbow_fast.rainbow.planning.room import check_room, machine_bytes

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
MACHINE = rf.Machine(*[1.0] * 7)
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
MAPS = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> rf.RainbowModel:
    return rf.fit(mlp((6, 12, 8, 4), seed=0), X)


@pytest.mark.parametrize(
    "options",
    [
        dict(method="paper"),
        dict(method="calibrated"),
        dict(method="regression"),
        dict(method="regression", ridge=0.0),
        dict(law="bootstrap", smoothing=0.5),
        dict(alignment="polar_complete"),
        dict(classifier="refit_aligned"),
    ],
    ids=str,
)
def test_impossible_widths_are_refused_before_anything_is_drawn(monkeypatch, options):
    def draw(*arguments):
        raise AssertionError("drawn")

    for law in (Orthonormal, rf.rainbow.laws.gaussian_rows.Gaussian):
        monkeypatch.setattr(law, "draw", draw)
    net, data, steps = mlp((6, 12, 8, 4), seed=0), (X, torch.arange(60) % 4), []
    model = rf.fit(net, data)
    message = r"site '2' with 1125899906842624 neurons needs at least 108 PB of memory, [\d.]+ .B are available"
    if options.get("ridge") == 0.0:
        message = r"site '2' with 1125899906842624 neurons needs at least \d+ PB of memory"
    for call in (model.sample, lambda **words: rf.sample(net, data, **words)):
        with pytest.raises(ValueError, match=f"^width={2**50}: {message}"):
            call(width=2**50, progress=lambda *step: steps.append(step), **options)
    with pytest.raises(ValueError, match=rf"^networks\[1\]: width={2**50}: {message}"):
        model.sample_many([dict(width=9, **options), dict(width=2**50, **options)])
    assert all("statistics" in step[2] for step in steps), "fit at most"
    assert model.plan(width=2**50, machine=MACHINE, **options).peak_bytes > 1e17, "planned as any other"


def test_the_option_is_named(model):
    with pytest.raises(
        ValueError, match=r"^factor=1000000000000000.0: site '2' with 12000000000000000 neurons needs at least"
    ):
        model.sample(factor=1e15)
    with pytest.raises(ValueError, match=r"^width=\{'4': 1125899906842624\}: site '4' with 1125899906842624 neurons"):
        model.sample(width={"4": 2**50})
    for options, name in ((dict(width=2**56 + 1), f"width={2**56 + 1}"), (dict(factor=1e308), r"factor=1e\+308")):
        for call in (model.sample, lambda **words: model.plan(machine=MACHINE, **words)):
            with pytest.raises(ValueError, match=rf"^{name}: wanted at most 2\^56 neurons at site '2'"):
                call(**options)


def test_the_reference_itself_may_be_too_large(model):
    with pytest.raises(ValueError, match="^width of the reference: site '2' with 12 neurons needs at least 1.15 kB"):
        check_room(model.prepared, [SampleOptions()], lambda device: 1151)
    check_room(model.prepared, [SampleOptions()], lambda device: 1152)


def test_matrices_of_all_networks_count(model):
    """M of 12 n float64 numbers, then that of 8 n, beside A of the sites before, float32."""
    one, two = SampleOptions(width=1000), [SampleOptions(width=1000, network_index=i) for i in range(2)]
    for networks, least in (([one], 4 * 12 * 1000 + 8 * 8000), (two, 4 * (12 + 12 + 8) * 1000 + 8 * 8000)):
        check_room(model.prepared, networks, lambda device, least=least: least)
        with pytest.raises(ValueError, match="width=1000: site '[24]' with 1000 neurons needs at least"):
            check_room(model.prepared, networks, lambda device, least=least: least - 1)


@pytest.mark.parametrize(
    "options",
    [
        dict(width=500),
        dict(factor=0.5, method="calibrated"),
        dict(width=300, method="regression"),
        dict(width=30, method="regression"),
        dict(width=30, method="regression", ridge=0.0),
        dict(width=30, align_flattened=True),
        dict(width=90, law="bootstrap"),
        dict(width=90, law="white"),
        dict(width=90, classifier="refit"),
    ],
    ids=str,
)
def test_what_is_refused_is_less_than_what_is_planned(options):
    """Whatever a machine can hold is sampled: a bound from below."""
    data = MAPS, torch.arange(20) % 10
    prepared = rf.fit(cnn((1, 3, 5), kernel_size=3, stride=1, image_size=8, seed=0), data).prepared
    peak = rf.RainbowModel(prepared).plan(machine=MACHINE, **options).peak_bytes
    check_room(prepared, [SampleOptions(**options)], lambda device: peak)


def test_other_devices(monkeypatch):
    assert room.memory_of(torch.device("meta")) == 2**63 - 1
    assert room.memory_of(torch.device("cpu")) == machine_bytes() > 2**27


def write(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


INFO = {"proc/meminfo": "MemTotal: 99 kB\nSwapTotal:       2048 kB\nSwapFree: 0 kB"}


@pytest.mark.parametrize(
    "files, limit",
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 10**6}, 10**6 + 2**21),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/memory.max": 10**6,
                "sys/fs/cgroup/a/b/memory.swap.max": 1000,
            },
            10**6 + 1000,
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/memory.max": 5 * 10**5,
                "sys/fs/cgroup/a/memory.swap.max": 0,
            },
            5 * 10**5,
        ),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/x\n0::/",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": 10**6,
            },
            10**6 + 2**21,
        ),
        ({"proc/self/cgroup": "4:memory:/x", "sys/fs/cgroup/memory/memory.limit_in_bytes": 10**5}, 10**5 + 2**21),
        ({"proc/self/cgroup": "4:memory:/x", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": 2**63 - 4096}, None),
        ({"proc/self/cgroup": "damaged"}, None),
        ({}, None),
    ],
    ids=["no limit", "v2", "v2 with swap", "v2 above", "v1", "v1 of a container", "v1 without", "damaged", "none"],
)
def test_limits_of_control_groups(tmp_path, files, limit):
    write(tmp_path, INFO | files)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine_bytes(tmp_path) == (physical + 2**21 if limit is None else limit)


def test_systems_that_do_not_say(tmp_path):
    assert machine_bytes(tmp_path) == 2**63 - 1
    write(tmp_path, {"proc/meminfo": "SwapTotal: none"})
    assert machine_bytes(tmp_path) == 2**63 - 1


LIMITED = """
import resource, torch
from memory import status
import rainbow_fast as rf
from rainbow_fast.networks import mlp

torch.set_num_threads(1)
model = rf.fit(mlp((6, 128, 4), seed=0), torch.randn(300, 6))
model.sample(width=500)
size = status("VmSize")
resource.setrlimit(resource.RLIMIT_AS, (size + 2**29, size + 2**29))
try:
    model.sample(width=(size + 2**29) // (8 * 128) + 1)
except ValueError as error:
    print(error)
model.sample(width=2**27 // (8 * 128))
print("sampled")
"""


def test_a_process_with_a_limit_of_its_own():
    refused, sampled = fresh_python(LIMITED).splitlines()
    assert refused.startswith("width=") and "GB are available: wanted a smaller width" in refused
    assert sampled == "sampled"
