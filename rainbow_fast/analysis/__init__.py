# SPDX-License-Identifier: BSD-3-Clause
"""What sampled networks are measured against: kernels of infinite width, and how fast they are reached.

Needs scipy.
"""

from importlib.util import find_spec

if find_spec("scipy") is None:
    raise ImportError('rainbow_fast.analysis needs scipy: pip install "rainbow_fast[analysis]"')
