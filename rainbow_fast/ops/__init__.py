# SPDX-License-Identifier: BSD-3-Clause
"""The seven ops: signature, docstring, checks, reference, registration as torch.ops.rainbow_fast.*

References are in plain PyTorch; those of `gaussian` and `uniform` are in NumPy.

Each letter has one meaning. x: activations of the reference (the trained network), y: activations of the sampled
network. N: samples, d: reference width, m: sampled input width, n: sampled output width, r: rank. M: cross-covariance
(d, m), A: alignment (d, m), L: factor of a weight covariance (r, d), G: white Gaussian matrix (n, r), P = L A (r, m),
W' = G P: sampled weights (n, m), u: projections (N, r). Activations are (N, d) or (N, d, *space), weights are
(out, in, *kernel).
"""
