# SPDX-License-Identifier: BSD-3-Clause
"""The way from a call of `sample` to a kernel is short."""

import hops
import pytest
from here import BACKENDS

# Four frames of each are those of the op. The features alone are made where a regression sums their products, and for a
# classifier that is refit; polar has a frame more for each step from a batch of matrices to the iteration.
MOST = {"random_features": 10, "polar": 9}


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
def test_frames_between_sample_and_its_kernels() -> None:
    stacks = {kernel: stack for (kernel, checks), stack in hops.stacks().items() if not checks}
    assert stacks.keys() >= {"gaussian", "cross_covariance", "polar", "random_features_covariance"}
    for kernel, stack in stacks.items():
        assert len(stack) <= MOST.get(kernel, 8), " > ".join(stack)
