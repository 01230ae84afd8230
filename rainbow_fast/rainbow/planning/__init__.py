# SPDX-License-Identifier: BSD-3-Clause
"""The cost of a sampling run, computed before it starts."""
