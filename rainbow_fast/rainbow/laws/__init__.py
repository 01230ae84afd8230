# SPDX-License-Identifier: BSD-3-Clause
"""The laws that random rows are drawn from, one file for each, and the directions that the rows combine.

=============  ==============================================================================================
gaussian       R = G: rows ``N(0, W^T W / d)``, the paper's law; ``keep_mean=True`` keeps the mean over channels
orthonormal    n >= r: R = G T, T = (G^T G / n)^(-1/2), folded into U; n < r: R = sqrt(r) (G G^T)^(-1/2) G
bootstrap      R_i = sqrt((1 - h^2) d) U[k(i)] + h g_i, k uniform: reference neurons, smoothed by h
identity       R = sqrt(d) U: the reference's own neurons in their order (n = d), a control
white          rows N(0, c^2 I) on the patches that a layer sees, as at initialisation: a control
=============  ==============================================================================================

To use your own law, write a subclass of `Law` and pass an object of it: ``sample(law=MyLaw())``.
"""

from rainbow_fast.rainbow.laws.bootstrap_rows import Bootstrap
from rainbow_fast.rainbow.laws.gaussian_rows import Gaussian
from rainbow_fast.rainbow.laws.identity_rows import Identity
from rainbow_fast.rainbow.laws.law import Law
from rainbow_fast.rainbow.laws.orthonormal_rows import Orthonormal
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.laws.white_rows import White

LAWS: dict[str, type[Law]] = {
    "gaussian": Gaussian,
    "orthonormal": Orthonormal,
    "bootstrap": Bootstrap,
    "identity": Identity,
    "white": White,
}

__all__ = ["LAWS", "Bootstrap", "Gaussian", "Identity", "Law", "Orthonormal", "Rows", "White"]
