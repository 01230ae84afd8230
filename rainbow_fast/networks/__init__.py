# SPDX-License-Identifier: BSD-3-Clause
"""Reference architectures and their training."""

from rainbow_fast.networks.cnn import cnn
from rainbow_fast.networks.mlp import mlp
from rainbow_fast.networks.train import accuracy, load_weights, save_weights, train

__all__ = ["accuracy", "cnn", "load_weights", "mlp", "save_weights", "train"]
