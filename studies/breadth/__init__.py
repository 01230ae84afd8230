# SPDX-License-Identifier: BSD-3-Clause
"""Which non-linearities of public architectures are sampled, and which are not and why: a list of 295 networks."""
