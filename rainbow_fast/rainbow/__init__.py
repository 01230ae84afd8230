# SPDX-License-Identifier: BSD-3-Clause
"""The model of the paper: moments, alignment, sampling, the sampled network.

Letters: z input of a site (d channels, the reference's neurons), phi its output; zh the input in the sampled network,
in reference coordinates; phi' = sigma(G_eff zh) the n sampled neurons; M = E[phi phi'^T]; A the alignment, s its scale,
c an offset; phih = s A phi' + c.
"""
