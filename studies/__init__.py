# SPDX-License-Identifier: BSD-3-Clause
"""Studies: what networks were sampled and measured for the pages in docs/. Each runs by `python -m studies.NAME`."""
