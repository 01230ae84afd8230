# SPDX-License-Identifier: BSD-3-Clause
"""Random networks that are not trained: the published figures, each with its theory."""
