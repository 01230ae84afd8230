# SPDX-License-Identifier: BSD-3-Clause
"""The way from a call of `sample` to a kernel is short."""

import hops
import pytest
from here import BACKENDS

# Four frames of each call belong to the op; polar has one more, the iteration. Features that a regression sums, or to
# which a classifier is refit, are made by a method of the site. Wide weights are made by their layer and by the rows. A
# regression that solves by products with S runs conjugate gradients, whose products are passes over the data.
MOST = {
    ("polar", hops.PASSES): 9,
    ("random_features", hops.PASSES): 10,
    ("sample_project_align", hops.PASSES): 10,
    ("cross_covariance", hops.SOLVER): 9,
    ("random_features", hops.LAYERS): 14,
    ("random_features", hops.SOLVER): 11,
    ("random_features_projection", hops.SOLVER): 15,
    ("random_features_covariance", hops.SOLVER): 15,
    ("random_features", hops.CHECKS): 17,
    ("random_features_projection", hops.CHECKS): 13,
}


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")
def test_frames_between_sample_and_its_kernels() -> None:
    stacks = hops.stacks()
    passes = {kernel for kernel, part in stacks if part == hops.PASSES}
    assert passes >= {"gaussian", "cross_covariance", "polar", "random_features_covariance"}
    for key, stack in stacks.items():
        assert len(stack) <= MOST.get(key, 8), " > ".join(stack)
