# SPDX-License-Identifier: BSD-3-Clause
"""The study of public architectures: what a record says, and what its page counts."""

import pytest
import torch
from torch import nn

pytest.importorskip("typer")

from rainbow_fast.io import read_records
from studies.breadth import __main__ as command
from studies.breadth import collated, identity, libraries
from studies.breadth.__main__ import RECORDS, main
from studies.breadth.libraries import Architecture, architectures, record
from studies.breadth.page import page


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.slopes = nn.Linear(6, 8), nn.Linear(8, 8), nn.PReLU(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        return self.a.weight.sum() + self.b(self.slopes(self.b(y * torch.sigmoid(self.b(y)))))


def test_a_record_counts_reasons(monkeypatch):
    """With a network of the repository in the place of one of a library, which is not installed for tests."""
    monkeypatch.setattr(libraries, "build", lambda _: Gated().eval())
    about = {"library": "timm", "name": "gated", "shape": "4x6"}
    assert record(Architecture("timm", "gated", (4, 6))) == about | {
        "route": "graph",
        "sites": 3,
        "kept": {"a gate, not named": 1, "it has parameters by channel": 1},
    }
    assert record(Architecture("timm", "gated", (4, 7)))["error"].startswith(
        "RuntimeError: mat1 and mat2 shapes cannot"
    )


class Normed(nn.Module):
    """A residual network whose scale is 0 at first, and a batch norm of large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.branch = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.first(x) * 50)
        return self.last(y + self.scale * self.branch(torch.relu(y)))


def test_the_identity_gives_the_reference(monkeypatch):
    """The reference's own neurons, with Gaussian ones as a control: all layers have a share in the outputs."""
    torch.manual_seed(0)
    monkeypatch.setattr(identity, "build", lambda _: Normed().eval())
    row = identity.identity(Architecture("timm", "normed", (4, 6)))
    assert row["float32"] <= 1e-5 and row["float64"] <= 1e-12 and 0 < row["rounding"] <= 1e-5  # rounding of few layers
    assert row["gaussian"] > 1e-2
    monkeypatch.setattr(identity, "LARGE", 10)
    assert identity.identity(Architecture("timm", "normed", (4, 6)))["of"] == 1
    monkeypatch.setattr(identity, "build", lambda _: nn.Linear(6, 3))
    refused = identity.identity(Architecture("timm", "linear", (4, 6)))
    assert refused == {"error": "ValueError: reference: no site, wanted at least one pointwise non-linearity"}


def test_as_trained():
    network, x = Normed().eval(), torch.randn(16, 6)
    biases = network.norm.bias.clone(), network.last.bias.clone()
    identity.as_trained(network, x)
    z = network.norm(network.first(x) * 50) / network.norm.weight
    torch.testing.assert_close(z.square().mean(0), torch.ones(8), rtol=1e-3, atol=0)  # eps of the norm
    for weight in (network.scale, network.norm.weight):
        assert ((weight >= 0.25) & (weight <= 0.75)).all() and weight.unique().numel() == 8
    assert torch.equal(network.norm.bias, biases[0]) and torch.equal(network.last.bias, biases[1])


def test_a_run_of_identities_continues(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(command, "identity", lambda each: calls.append(each.name) or {"error": "no"})
    listed = [Architecture("timm", name, (4, 6)) for name in "ab"]
    records = [{"about": {}}, *({"library": "timm", "name": name, "shape": "4x6"} for name in "abc")]
    records[1]["identity"] = {"error": "before"}
    command.add_identity(records, listed, tmp_path)
    assert calls == ["b"] and "identity" not in records[3]
    assert read_records(tmp_path / "records.jsonl") == records


def test_the_page_counts_what_is_neither_gate_nor_output():
    rows = [
        {"about": {"torch": "2", "timm": "1"}},
        {
            "library": "timm",
            "name": "a",
            "shape": "4x6",
            "route": "graph",
            "sites": 9,
            "kept": {"a gate, not named": 3},
        },
        {"library": "timm", "name": "b", "shape": "4x6", "route": "modules", "sites": 2, "kept": {"unknown": 1}},
        {"library": "timm", "name": "c", "shape": "4x6", "error": "ValueError: no"},
    ]
    text = page(rows)
    assert "- 2 of 3 are traced, 1 of them as a graph." in text
    assert "- 7 of 11 non-linearities are sampled. 3 are gates." in text and "87.5 % are sampled" in text
    assert "| timm | b | 4x6 | modules | 2 | 1 | 0 |  |  | 1: unknown |" in text
    assert "| timm | c | 4x6 | refused |  |  |  |  |  | ValueError: no |" in text
    assert "own neurons\n" not in text


def test_the_page_counts_what_is_within_the_limits():
    def row(name: str, **rest: object) -> dict:
        start = {"library": "timm", "name": name, "shape": "4x6", "route": "graph", "sites": 1, "kept": {}}
        return start | rest

    near = {"float32": 1e-6, "float64": 1e-12, "rounding": 2e-6, "gaussian": 0.5}
    text = page(
        [
            {"about": {"torch": "2", "timm": "1"}},
            row("a", identity=near),
            row("b", identity=near | {"float32": 3e-4, "gaussian": 0.25, "of": 4}),
            row("c", identity={"error": "ValueError: no"}),
            row("d", identity={"error": "ValueError: no site"}, kept={"a gate, not named": 1}),
        ]
    )
    assert "- float32: 1 of 3 are within 5e-05. The largest distance is 3.0e-04 (timm b)." in text
    assert "- float64: 2 of 3 are within 1e-08. The largest distance is 1.0e-12 (timm a)." in text
    assert "2.0e-06 to 2.0e-06" in text and "2.5e-01 to 5.0e-01, 3.8e-01 in the middle." in text
    assert "only some sites of b (4)." in text and "- 1 of 4 have no non-linearity that is sampled." in text
    assert "| timm | b | 3.0e-04 | 1.0e-12 | 2.0e-06 |" in text and "| timm | c |  |  |  |" in text
    assert "| timm | a | 4x6 | graph | 1 | 1 | 0 | 1.0e-06 | 1.0e-12 |  |" in text


def test_the_kept_records_are_of_all_architectures():
    """They are what the page shows: at least 98 % are traced, and at least 90 % of what is no gate is sampled."""
    rows = [row for row in read_records(RECORDS) if "library" in row]
    assert [(row["library"], row["name"]) for row in rows] == [(each.library, each.name) for each in architectures()]
    traced = [row for row in rows if "error" not in row]
    assert len(traced) >= 0.98 * len(rows)
    gates = sum(row["kept"].get("a gate, not named", 0) for row in traced)
    sampled = sum(row["sites"] - sum(row["kept"].values()) for row in traced)
    assert sampled >= 0.9 * (sum(row["sites"] for row in traced) - gates)


def test_other_libraries_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--library: 'keras', wanted torchvision, timm or transformers"):
        main(library="keras", out=tmp_path)


def test_batches_of_transformers():
    """Every case has its inputs; the kept records have all of them, and no padded position counts."""
    for name in collated.CASES:
        data = collated.batch(name)
        assert {len(each) for each in data.values()} == {collated.SAMPLES}
        if "attention_mask" in data and "input_ids" in data:
            assert torch.equal(data["input_ids"] == 0, data["attention_mask"] == 0)
    rows = [row for row in read_records(RECORDS) if "batch" in row]
    assert [row["batch"] for row in rows] == list(collated.CASES)
    assert all(row["positions"] == row["counted"] for row in rows)
    assert max(max(row["identity"], row["materialize"]) for row in rows) < 5e-5
    other = {"library": "timm", "name": "a", "shape": "4x6", "route": "graph", "sites": 9, "kept": {}}
    text = page([{"about": {"torch": "2"}}, other, *rows])
    assert "| bert, a class a text | input_ids, attention_mask, labels | 3 | 3 |" in text
