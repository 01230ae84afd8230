# SPDX-License-Identifier: BSD-3-Clause
"""Held-out data: given as data, as a number of samples, or as a fraction, drawn at random and equal every time."""

import pytest
import torch
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.networks import mlp
from rainbow_fast.rainbow.chunks import Data

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 2
NET = mlp((6, 8, 5, 2), seed=0)


def samples(data: Data) -> Tensor:
    return torch.cat([data.chunk(start) for start in data.starts])


def rows(x: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in x.tolist()}


@pytest.mark.parametrize(("holdout", "count"), [(0.1, 5), (0.25, 12), (7, 7), (0, 0), (0.0, 0)])
def test_a_number_or_a_fraction_is_drawn_from_the_data(holdout, count):
    prepared = rf.fit(NET, (X, Y), holdout=holdout).prepared
    assert (prepared.align.count, prepared.held.count) == (50 - count, count)
    aligned, held = samples(prepared.align), samples(prepared.held) if count else X[:0]
    assert rows(aligned) | rows(held) == rows(X) and not rows(aligned) & rows(held)
    assert prepared.align.labels is not None and len(prepared.align.labels) == 50 - count


def test_the_seed_of_a_random_choice_is_in_the_report():
    for options, seed in (
        ({}, 0),
        ({"holdout": 7, "holdout_seed": 3}, 3),
        ({"holdout": 0}, None),
        ({"holdout": X}, None),
    ):
        _, report = rf.fit(NET, X, **options).sample()
        assert report.holdout_seed == seed and rf.Report.from_dict(report.to_dict()) == report
        assert (f"holdout_seed={seed}" in str(report)) == (seed is not None)


def test_labels_go_with_their_samples_and_the_order_stays():
    sorted_by_class = X + 100 * torch.arange(50).unsqueeze(1)  # the first number identifies the sample
    for data in (prepared := rf.fit(NET, (sorted_by_class, Y), holdout=20).prepared).align, prepared.held:
        places = (samples(data)[:, 0] / 100).round().long()
        assert torch.equal(data.labels, Y[places]) and torch.equal(places, places.sort().values)


def test_default_is_a_tenth_that_is_not_the_end_of_the_data():
    held = samples(rf.fit(NET, X).prepared.held)
    assert len(held) == 5 and rows(held) != rows(X[-5:])


def test_seed_chooses_the_samples():
    def held(**options: int) -> Tensor:
        return samples(rf.fit(NET, X, holdout=10, **options).prepared.held)

    assert torch.equal(held(), held(holdout_seed=0)) and torch.equal(held(holdout_seed=3), held(holdout_seed=3))
    assert not torch.equal(held(), held(holdout_seed=1))


def test_nothing_of_the_data_is_copied():
    prepared = rf.fit(NET, X, holdout=10).prepared
    assert prepared.align.x.data_ptr() == prepared.held.x.data_ptr() == X.data_ptr()


def test_first_images_only():
    prepared = rf.fit(NET, (X, Y), images=20, holdout=0.25).prepared
    assert rows(samples(prepared.align)) | rows(samples(prepared.held)) == rows(X[:20])
    assert rf.fit(NET, X, images=1000, holdout=X[:3]).prepared.align.count == 50
    cost = rf.plan(NET, X[:1], images=1000, machine=MACHINE)
    assert (cost.images, cost.held_out_images) == (900, 100)


MACHINE = rf.Machine(
    **{name: 1e9 for name in ("kernels", "activations", "layers", "polar", "float64", "pooling", "copy")}
)


def test_sample_fit_plan_and_compare_split_alike():
    model = rf.fit(NET, (X, Y))
    of_model, of_sample = model.sample(factor=2)[1], rf.sample(NET, (X, Y), factor=2)[1]
    assert of_model == of_sample and of_model.held_out_samples == 5
    comparison = rf.compare(NET, mlp((6, 8, 5, 2), seed=1), X)
    assert (comparison.samples, comparison.held_out_samples) == (45, 5)
    cost = rf.plan(NET, (X, Y), machine=MACHINE)
    assert (cost.images, cost.held_out_images) == (45, 5)


def test_saved_model_has_its_samples(tmp_path):
    model = rf.fit(NET, (X, Y), holdout=10)
    rf.save_model(model, tmp_path / "model.safetensors")
    loaded = rf.load_model(tmp_path / "model.safetensors", NET)
    for mine, theirs in ((model.prepared.align, loaded.prepared.align), (model.prepared.held, loaded.prepared.held)):
        assert torch.equal(samples(mine), samples(theirs)) and torch.equal(mine.labels, theirs.labels)
    assert torch.equal(model.sample(factor=2)[0](X), loaded.sample(factor=2)[0](X))


def test_resumed_run_has_the_same_held_out_samples(tmp_path):
    options = {"factor": 2, "resume_dir": str(tmp_path / "run")}
    rf.sample(NET, X, holdout=10, **options)
    with pytest.raises(ValueError, match="resume_dir: .* holds another run: it differs in .*held-out data"):
        rf.sample(NET, X, holdout=10, holdout_seed=1, **options)


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (1.0, r"holdout=1.0: wanted data, a number of samples \(an int\), or a fraction, 0 <= holdout < 1"),
        (-0.1, r"holdout=-0.1: wanted data, a number of samples \(an int\), or a fraction"),
        (-3, "holdout=-3: wanted data, a number of samples, at least 0, or a fraction"),
        (50, "holdout=50: data has 50 samples, wanted at least one more than are held out"),
    ],
)
def test_errors(holdout, message):
    with pytest.raises(ValueError, match=message):
        rf.fit(NET, X, holdout=holdout)
