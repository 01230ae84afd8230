# SPDX-License-Identifier: BSD-3-Clause
"""What a run takes, before it starts."""
