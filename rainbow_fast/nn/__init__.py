# SPDX-License-Identifier: BSD-3-Clause
"""Rainbow layers: networks that are made to be sampled, and their training with resampled neurons."""

from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.nn.layers import RainbowConv2d, RainbowLinear
from rainbow_fast.nn.resample import Resampled, resample

__all__ = ["RainbowConv2d", "RainbowLinear", "RandomFeatures", "resample", "Resampled"]
