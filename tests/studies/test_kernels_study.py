# SPDX-License-Identifier: BSD-3-Clause
"""The study of kernel regression, once, on few random images."""

import math
from pathlib import Path

import pytest
import torch
from here import draw

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from rainbow_fast.cli.training import new_reference
from rainbow_fast.data import Images
from studies.kernels.__main__ import measured, write_page
from studies.kernels.kernel_experiment import LEARNED, OTHERS, REFIT, SAMPLED, TRAINED, WHITE, Study, white_kernel


@pytest.mark.filterwarnings("ignore:site .* samples for")
def test_kernels(tmp_path: Path) -> None:
    study = Study({"mlp": 20, "cnn": 10}, trained=30, epochs=1, tested=10, factors=(1,), networks=2)
    x, x_test = draw(study.read, 1, 32, 32), draw(10, 1, 32, 32, seed=1)
    records = measured(study, Images(x, torch.arange(len(x)) % 10, x_test, torch.arange(10)))
    for name in ("mlp", "cnn"):
        mine = [record for record in records if record["architecture"] == name]
        assert [record["arm"] for record in mine] == [
            *(TRAINED, WHITE, LEARNED, SAMPLED, REFIT, OTHERS),
            *2 * [SAMPLED, REFIT],
        ]
        assert {record["factor"] for record in mine if record["arm"] == REFIT} == {math.inf, 1}
    write_page(records, tmp_path)
    page = (tmp_path / "kernels.md").read_text()
    assert "trained on the first 30 images" in page and "fitted to, 20 images" in page
    assert "|  | x1 | infinite |" in page and "| learned C, other images |" in page
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")


def test_the_white_kernel_is_that_of_wide_untrained_networks() -> None:
    """Products of the features of 30 networks; 5 standard deviations of their mean."""
    x, y = draw(3, 1, 32, 32, dtype=torch.float64), draw(2, 1, 32, 32, dtype=torch.float64, seed=1)
    for architecture in ("mlp", "cnn"):
        about = new_reference(architecture, "cifar10")
        products = []
        for seed in range(30):
            layers = about.build(seed).double()[:-1]
            with torch.no_grad():
                for layer in layers:
                    if hasattr(layer, "weight"):
                        generator = torch.Generator().manual_seed(1000 + seed)
                        white = torch.randn(layer.weight.shape, dtype=torch.float64, generator=generator)
                        layer.weight.copy_(white / layer.weight[0].numel() ** 0.5)
                f, g = layers(x), layers(y)
            products.append(f @ g.T / f.shape[1])
        values = torch.stack(products)
        distance = (values.mean(0) - white_kernel(about)(x, y)).abs()
        assert bool((distance < 5 * values.std(0) / 30**0.5).all())
