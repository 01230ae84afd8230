# SPDX-License-Identifier: BSD-3-Clause
"""The five ops: signature, docstring, checks, plain-PyTorch reference, registration as torch.ops.rainbow_fast.*

Letters, one meaning each: x reference activations, y sampled activations; N samples, d reference width, m sampled input
width, n sampled output width, r rank. M cross-covariance (d, m), A alignment (d, m), L factor of a weight covariance
(r, d), G white Gaussian (n, r), P = L A (r, m), W' = G P (n, m), u projections (N, r). Activations are (N, d) or
(N, d, *space), weights (out, in, *kernel).
"""
