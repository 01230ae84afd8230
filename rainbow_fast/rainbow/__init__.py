# SPDX-License-Identifier: BSD-3-Clause
"""The rainbow model of the paper: moments, alignment, sampling, and the sampled network.

The reference is the trained network that networks are sampled from. A site is one of its non-linearities, with the
pooling and the normalisation that belong to it. All modules use the same symbols for a site:

    z       input of the site in the reference, with d channels (its neurons)
    phi     output of the site in the reference
    zh      input of the site in the sampled network, in the coordinates of the reference
    phi'    the n sampled neurons, phi' = sigma(G_eff zh)
    M       cross-covariance E[phi phi'^T]
    A, s, c alignment, its scale and an offset
    phih    output of the site in the sampled network, in the coordinates of the reference, phih = s A phi' + c
"""
