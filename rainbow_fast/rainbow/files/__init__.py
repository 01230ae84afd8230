# SPDX-License-Identifier: BSD-3-Clause
"""Files of sampled networks and of fitted models."""
