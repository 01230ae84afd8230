# SPDX-License-Identifier: BSD-3-Clause
"""Random chains without data: the published figures, each with its theory."""
