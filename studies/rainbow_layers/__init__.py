# SPDX-License-Identifier: BSD-3-Clause
"""Networks of rainbow layers on CIFAR-10: how much accuracy their samples lose, and what they cost."""
