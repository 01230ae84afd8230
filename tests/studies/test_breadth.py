# SPDX-License-Identifier: BSD-3-Clause
"""The study of public architectures: what a record says, and what its page counts."""

import pytest
import torch
from torch import nn

pytest.importorskip("typer")

from rainbow_fast.io import read_records
from studies.breadth import libraries
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
    assert "| timm | b | 4x6 | modules | 2 | 1 | 0 | 1: unknown |" in text
    assert "| timm | c | 4x6 | refused |  |  |  | ValueError: no |" in text


def test_the_kept_records_are_of_all_architectures():
    """They are what the page shows: at least 98 % are traced, and at least 90 % of what is no gate is sampled."""
    _, *rows = read_records(RECORDS)
    assert [(row["library"], row["name"]) for row in rows] == [(each.library, each.name) for each in architectures()]
    traced = [row for row in rows if "error" not in row]
    assert len(traced) >= 0.98 * len(rows)
    gates = sum(row["kept"].get("a gate, not named", 0) for row in traced)
    sampled = sum(row["sites"] - sum(row["kept"].values()) for row in traced)
    assert sampled >= 0.9 * (sum(row["sites"] for row in traced) - gates)


def test_other_libraries_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--library: 'keras', wanted torchvision, timm or transformers"):
        main(library="keras", out=tmp_path)
