# SPDX-License-Identifier: BSD-3-Clause
"""Arguments of `train`, as published and for short trainings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_TUTORIAL = {
    "epochs": 5, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 128, "schedule": "constant",
    "crop": 0, "flip": False,
}  # fmt: skip
_SCATTERING = _TUTORIAL | {"epochs": 150, "schedule": "steps", "weight_decay": 1e-4, "crop": 4, "flip": True}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "tutorial": _TUTORIAL,
    "digits": _TUTORIAL | {"epochs": 20, "batch_size": 32},
    "scattering": _SCATTERING,
    "scattering-no-norm": _SCATTERING | {"weight_decay": 0.0},
    "scattering-short": _SCATTERING | {"epochs": 14, "lr": 0.05, "schedule": "cosine"},
})  # fmt: skip
"""Arguments of `train` by name: ``train(network, x, y, **PRESETS["scattering"])``.

| name | for |
| --- | --- |
| "tutorial" | `mlp` and `cnn` on CIFAR-10, as in the published tutorial |
| "digits" | `mlp` and `cnn` on `digits` |
| "scattering" | `scattering` on CIFAR-10, as published: 150 epochs, rate 0.01, a tenth after each 50, flips, crops |
| "scattering-no-norm" | the same without weight decay, as published for `norm=False` |
| "scattering-short" | `scattering` on CIFAR-10 in 14 epochs: rate 0.05, which falls to 0 as a cosine. Not published |

Source: Guth, Menard, Rochette, Mallat (2024), appendix D, and the code of their tutorial.
"""
