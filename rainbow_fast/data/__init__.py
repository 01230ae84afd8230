# SPDX-License-Identifier: BSD-3-Clause
"""Data sets of labelled images, and functions that read data in batches."""

from rainbow_fast.data.batching import Batch, batches
from rainbow_fast.data.datasets import LUMA, MEAN, STD, Images, cifar10, digits
from rainbow_fast.data.files import image_folder, npy_pair

__all__ = ["LUMA", "MEAN", "STD", "Batch", "Images", "batches", "cifar10", "digits", "image_folder", "npy_pair"]
