# SPDX-License-Identifier: BSD-3-Clause
"""The pages in docs/ are exactly what the studies make from their stored records."""

from collections.abc import Callable
from pathlib import Path

import pytest
from here import ROOT

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

import studies.batch_norms.__main__ as batch_norms
import studies.breadth.__main__ as breadth
import studies.cifar10.__main__ as cifar10
import studies.convergence.__main__ as convergence
import studies.kernels.__main__ as kernels
import studies.normalisers.__main__ as normalisers
import studies.orthogonal_chains.__main__ as orthogonal_chains
import studies.rainbow_layers.__main__ as rainbow_layers
import studies.random_chains.__main__ as random_chains
import studies.random_networks.__main__ as random_networks
import studies.rates.__main__ as rates
import studies.scattering.__main__ as scattering
from rainbow_fast.io import read_records

STUDIES = {
    "batch_norms": batch_norms,
    "breadth": breadth,
    "cifar10": cifar10,
    "convergence": convergence,
    "kernels": kernels,
    "normalisers": normalisers,
    "orthogonal_chains": orthogonal_chains,
    "rainbow_layers": rainbow_layers,
    "random_chains": random_chains,
    "random_networks": random_networks,
    "rates": rates,
    "scattering": scattering,
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_is_made_from_its_records(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    write_page: Callable = study.write_page
    write_page(read_records(study.RECORDS), tmp_path)
    assert (tmp_path / f"{name}.md").read_text() == (ROOT / "docs" / f"{name}.md").read_text()
    assert name == "breadth" or (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
