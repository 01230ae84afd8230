# SPDX-License-Identifier: BSD-3-Clause
"""Architectures of reference networks, and functions that train them."""

from rainbow_fast.networks.cnn import cnn
from rainbow_fast.networks.mlp import mlp
from rainbow_fast.networks.presets import PRESETS
from rainbow_fast.networks.resnet import resnet_cifar, resnet_imagenet
from rainbow_fast.networks.scattering import scattering
from rainbow_fast.networks.train import accuracy, load_weights, save_weights, train
from rainbow_fast.networks.vgg import vgg

__all__ = [
    "PRESETS",
    "accuracy",
    "cnn",
    "load_weights",
    "mlp",
    "resnet_cifar",
    "resnet_imagenet",
    "save_weights",
    "scattering",
    "train",
    "vgg",
]
