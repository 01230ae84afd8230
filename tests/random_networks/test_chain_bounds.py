# SPDX-License-Identifier: BSD-3-Clause
"""The theorems on chains with batch norm, at widths where their bounds say something."""

import math

import pytest
import torch

from rainbow_fast.random_networks import chain_theory as theory
from rainbow_fast.random_networks import gram_chain

SPECTRA = ([0.4, 0.3, 0.2, 0.1], [0.7, 0.2, 0.07, 0.03], [0.96, 0.02, 0.01, 0.01], [0.6, 0.4])


@pytest.mark.parametrize("lam", SPECTRA, ids=str)
def test_theorem_5(lam):
    """The mean of 1/n - lambda_n after a layer, at a width where its bound is below 1/n, the largest possible value."""
    lam, d = torch.tensor(lam, dtype=torch.float64), 10_000
    largest, bound = 1 / len(lam), float(theory.layer_bound(lam, d))
    assert bound < largest
    after = gram_chain(torch.diag(lam.sqrt()), 1, width=d, runs=50).smallest_eigenvalue[:, 1]
    assert float((largest - after).mean()) < bound


@pytest.mark.parametrize("lam", SPECTRA, ids=str)
@pytest.mark.parametrize("d", [8, 64, 1000])
def test_lemma_7(lam, d):
    """E (Vhat - (1/n - p_n))^2 <= 1/d for Vhat = 1/n - lambda_n after a layer, and p = E C' of `mean_field`.

    |lambda_n(C') - p_n| <= |C' - E C'|_F for every C' by Weyl; the mean square of the right side is `layer_noise`.
    """
    lam = torch.tensor(lam, dtype=torch.float64)
    p, noise = theory.mean_field(lam), float(theory.layer_noise(lam, d))
    result = gram_chain(torch.diag(lam.sqrt()), 1, width=d, runs=400)
    off = (result.smallest_eigenvalue[:, 1] - p.min()).abs()
    distance = torch.linalg.matrix_norm(result.grams[:, 1] - p.diag())
    assert bool((off <= distance + 1e-14).all())  # 1e-14: roundings of eigenvalues of float64
    assert float(off.square().mean()) <= noise <= 1 / d


def test_theorem_1_and_corollary_3():
    """For two samples of width 20,000, where the bounds say something: from layer 4 on they are below the largest gap.

    alpha is the smallest eigenvalue of all layers and runs, as the assumption wants.
    """
    d, layers = 20_000, 20
    start = torch.diag(torch.tensor([0.6, 0.4], dtype=torch.float64).sqrt())
    result = gram_chain(start, layers, width=d, runs=20)
    alpha = float(result.smallest_eigenvalue.min())
    bounds = torch.tensor([theory.gap_bound(2, d, alpha, layer) for layer in range(layers + 1)], dtype=torch.float64)
    assert alpha > 0.39 and bool((bounds[4:] < math.sqrt(0.5)).all())
    assert bool((result.orthogonality_gap.mean(0) <= bounds).all())
    assert bool((result.gaussian_distance.square().mean(0) <= 4 * bounds).all())
