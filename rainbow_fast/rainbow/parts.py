# SPDX-License-Identifier: BSD-3-Clause
"""The parts that a method of sampling is made of, and the named presets."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

LAWS = ("gaussian", "orthonormal", "bootstrap", "identity")
SCALES = ("sqrt", "optimal", "nuclear", "one")
ALIGNMENTS = ("polar", "polar_complete", "regression")


@dataclass(frozen=True)
class Parts:
    """How a site is sampled and aligned. phi' are the wide features (normalised, where the site is).

    Attributes:
        law: of the rows of G_eff: ``gaussian``, ``orthonormal``, ``bootstrap``, ``identity`` (`rainbow.laws.draw`).
        mean_row: keep the mean over channels of zh: ``z'_i = zbar + g_i (zh - zbar) / sqrt(d)``.
        recalibrate: give zh, after the first sampled site, the reference's mean and variance per channel.
        center: ``M = E[phi phi'^T] - mu mu'^T`` instead of the uncentred one.
        offset: add ``c = mu - A mu'``, so that phih has the mean of phi.
        scale: s, by which the alignment is multiplied: ``sqrt`` sqrt(d / n); ``optimal`` tr(A M^T) / E|A phi'|^2
            (centred moments with an offset); ``nuclear`` |M|_* / E|phi'|^2; ``one``.
        alignment: ``polar`` A = U V^T of M = U S V^T, null directions to zero; ``polar_complete`` maps them by an
            isometry; ``regression`` A = M (S' + lambda I)^-1, S' = E[phi' phi'^T] (n, n), which is layerwise regression
            on random features and not a rainbow network.
        ridge: lambda over the mean of the diagonal of S', for the regression.
        h: smoothing of the bootstrap, 0 to 1.
    """

    law: str = "gaussian"
    mean_row: bool = False
    recalibrate: bool = False
    center: bool = False
    offset: bool = False
    scale: str = "sqrt"
    alignment: str = "polar"
    ridge: float = 0.0
    h: float = 0.0


METHODS = {
    "paper": Parts(),
    "calibrated": Parts("orthonormal", mean_row=True, recalibrate=True, center=True, offset=True, scale="optimal"),
    "regression": Parts(scale="one", alignment="regression", ridge=1e-3),
}


def resolve(method: str, **given: Any) -> Parts:
    """The preset of `method` with the parts that are given, those that are None left out.

    Two parts follow from another unless they are given: the bootstrap keeps the mean row, and the regression has scale
    ``one`` and a ridge of 1e-3.

    Raises:
        ValueError: an unknown name, a number outside its range, parts that contradict each other.
    """
    _choice("method", method, tuple(METHODS))
    chosen = {key: value for key, value in given.items() if value is not None}
    for key in ("mean_row", "recalibrate", "center", "offset"):
        if key in chosen and not isinstance(chosen[key], bool):
            raise ValueError(f"{key}={chosen[key]!r}: wanted True, False or None")
    follows: dict[str, Any] = {}
    if chosen.get("law") == "bootstrap":
        follows["mean_row"] = True
    if chosen.get("alignment") == "regression":
        follows |= {"scale": "one", "ridge": METHODS["regression"].ridge}
    elif "alignment" in chosen and method == "regression":
        follows |= {"scale": "sqrt", "ridge": 0.0}
    parts = replace(METHODS[method], **(follows | chosen))
    _check(parts, chosen)
    return parts


def _check(parts: Parts, chosen: dict[str, Any]) -> None:
    _choice("law", parts.law, LAWS)
    _choice("scale", parts.scale, SCALES)
    _choice("alignment", parts.alignment, ALIGNMENTS)
    if not 0 <= parts.h <= 1:
        raise ValueError(f"h={parts.h}: wanted 0 <= h <= 1")
    if not 0 <= parts.ridge < float("inf"):
        raise ValueError(f"ridge={parts.ridge}: wanted a finite number, at least 0")
    if parts.center and not parts.offset:
        raise ValueError("center=True with offset=False: a centred alignment without its offset destroys the means")
    if "h" in chosen and parts.law != "bootstrap":
        raise ValueError(f"h={parts.h} with law={parts.law!r}: wanted law='bootstrap', which alone is smoothed")
    if parts.law == "bootstrap" and not parts.mean_row:
        raise ValueError("mean_row=False with law='bootstrap': the bootstrap keeps the mean row")
    if "ridge" in chosen and parts.alignment != "regression":
        raise ValueError(f"ridge={parts.ridge} with alignment={parts.alignment!r}: wanted alignment='regression'")
    if parts.alignment == "regression" and parts.scale != "one":
        raise ValueError(f"scale={parts.scale!r} with alignment='regression', which scales itself: wanted 'one'")


def _choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: wanted one of {', '.join(known)}")


PART_NAMES = tuple(field.name for field in fields(Parts))
