# SPDX-License-Identifier: BSD-3-Clause
"""The options of fitting and sampling. Each is declared once: name, type, default, check and help."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from rainbow_fast.arguments import bytes_of, flag, folder, integer, number, one_of
from rainbow_fast.fields import Check, Options, documented, option
from rainbow_fast.rainbow.alignment import ALIGNMENTS, Alignment
from rainbow_fast.rainbow.laws import LAWS, Law
from rainbow_fast.rainbow.laws.marchenko_pastur import NOISE_EDGE

SITE_BITS, NETWORK_BITS = 12, 20  # of a stream: network << 12 | site
SCALES = ("sqrt", "optimal", "nuclear", "one")
STORAGES = ("memory", "file", "recompute")

# Checks of single values


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _between(low: float, high: float, wanted: str, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A number of an interval, closed but for the ends that are open."""

    def check(name: str, value: Any) -> Any:
        value = number(name, value)
        inside = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
        if not inside:
            raise ValueError(f"{name}={value}: wanted {wanted}")
        return value

    return check


def _true_or_false(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: wanted True, False or None")
    return value


def _named(names: Iterable[str], kind: type) -> Check:
    """One of the names, or an object of that kind."""
    return lambda name, value: value if isinstance(value, kind) else one_of(name, value, names)


def _align(name: str, value: Any) -> str:
    if value not in ("channels", "flattened"):
        raise ValueError(f"{name}={value!r}: wanted 'channels' or 'flattened'")
    return value


def _classifier(name: str, value: Any) -> str:
    if value not in (None, "refit", "refit_aligned"):
        raise ValueError(f"{name}={value!r}: wanted None, 'refit' or 'refit_aligned'")
    return value


def _holdout(name: str, value: Any) -> Any:
    if isinstance(value, int | float | np.number) and not 0 <= value < 1:
        raise ValueError(f"{name}={value}: wanted a share of the data, 0 <= {name} < 1, or data")
    return value


def _storage(name: str, value: Any) -> Any:
    if value not in (None, *STORAGES):
        raise ValueError(f"{name}={value!r}: wanted None or one of {', '.join(STORAGES)}")
    return value


def _storage_dtype(name: str, value: Any) -> Any:
    if value not in (None, torch.bfloat16):
        raise ValueError(f"{name}={value}: wanted None or torch.bfloat16")
    return value


# The options


@documented
@dataclass(frozen=True)
class FitOptions(Options):
    """What a model is fitted with, beside its reference and its data."""

    holdout: object = option(
        None,
        "what errors and accuracies are also measured on: data of its own, or the share of the data, from its end, "
        "that is left out of the alignment; a tenth by default, 0 for none.",
        _holdout,
    )
    max_samples: int = option(
        400_000,
        "of the moments of a site: where images times positions are more, every t-th is taken, t odd and coprime with "
        "the positions of a map.",
        lambda name, value: integer(name, value, 1),
    )
    pointwise: Iterable[type[nn.Module]] = option(
        (),
        "kinds of modules of one's own that treat every number alike, and so can be sampled.",
        lambda _, kinds: tuple(kinds),
    )
    iterations: int = option(
        2,
        "of the generalised Procrustes alignment of several references; 1 rotates them onto the first.",
        lambda name, value: integer(name, value, 1),
    )
    chunk: int | None = option(
        None,
        "samples that are computed on at a time; as many as have 2^21 numbers in their largest map by default.",
        _optional(lambda name, value: integer(name, value, 1)),
    )


@documented
@dataclass(frozen=True)
class DataLimits(Options):
    """What limits the memory that data may take."""

    memory_budget: int | None = option(
        None,
        "bytes that data which is no tensor already, and the activations of all data between two sites, may take each; "
        "None for no limit. Above it they go to files; where the disk is too small, activations are computed again for "
        "every site (quadratic in depth).",
        _optional(bytes_of),
    )
    scratch: str | None = option(
        None, "an existing folder for these files; that of the system for temporary ones by default.", _optional(folder)
    )


@documented
@dataclass(frozen=True)
class Limits(DataLimits):
    """What limits a run of sampling: memory, disk, and where it goes on after it was stopped."""

    storage: str | None = option(
        None,
        "where activations wait between two sites: 'memory', 'file' or 'recompute'. None takes the first that has the "
        "room. The choice changes no bit.",
        _storage,
    )
    storage_dtype: torch.dtype | None = option(
        None, "torch.bfloat16 rounds what waits, at half the size; None does not.", _storage_dtype
    )
    resume: str | None = option(
        None,
        "a folder, made if it is not there, that every finished site is written to. Called again with the same "
        "arguments, a run that was stopped, in whatever way, goes on behind its last finished site, and ends with the "
        "bits of one that never was. The folder stays; remove it when it is no longer wanted.",
    )


@documented
@dataclass(frozen=True)
class MethodOptions(Options):
    """How a site is sampled and aligned: what a method consists of. phi' are the wide features (normalised, where the
    site is). None stands for what the method has.
    """

    law: str | Law = option(
        None,
        f"of the rows of G_eff: {', '.join(LAWS)} (see `rainbow.laws`), or a `Law`.",
        _optional(_named(LAWS, Law)),
    )
    mean_row: bool = option(
        None,
        "keep the mean over channels of zh: z'_i = zbar + g_i (zh - zbar) / sqrt(d).",
        _optional(_true_or_false),
    )
    recalibrate: bool = option(
        None,
        "give zh, after the first sampled site, the reference's mean and variance per channel.",
        _optional(_true_or_false),
    )
    center: bool = option(None, "M = E[phi phi'^T] - mu mu'^T instead of the uncentred one.", _optional(_true_or_false))
    offset: bool = option(None, "add c = mu - A mu', so that phih has the mean of phi.", _optional(_true_or_false))
    scale: str = option(
        None,
        "s, by which the alignment is multiplied: sqrt, sqrt(d / n); optimal, tr(A M^T) / E|A phi'|^2 (centred moments "
        "with an offset); nuclear, |M|_* / E|phi'|^2; one.",
        _optional(lambda name, value: one_of(name, value, SCALES)),
    )
    alignment: str | Alignment = option(
        None,
        f"A: {', '.join(ALIGNMENTS)} (see `rainbow.alignment`), or an `Alignment`. polar: A = U V^T of "
        "M = U S V^T, null directions to zero; polar_complete maps them by an isometry; regression: A = M (S' + lambda "
        "I)^-1, S' = E[phi' phi'^T] (n, n), which is layerwise regression on random features, no rainbow network.",
        _optional(_named(ALIGNMENTS, Alignment)),
    )
    ridge: float = option(
        None,
        "lambda over the mean of the diagonal of S', for the regression.",
        _optional(_between(0, math.inf, "a finite number, at least 0", open_high=True)),
    )
    h: float = option(None, "smoothing of the bootstrap, 0 to 1.", _optional(_between(0, 1, "0 <= h <= 1")))


PAPER = MethodOptions("gaussian", False, False, False, False, "sqrt", "polar", 0.0, 0.0)
METHODS = {
    "paper": PAPER,
    "calibrated": replace(
        PAPER, law="orthonormal", mean_row=True, recalibrate=True, center=True, offset=True, scale="optimal"
    ),
    "regression": replace(PAPER, scale="one", alignment="regression", ridge=1e-3),
}


@documented
@dataclass(frozen=True)
class SampleOptions(MethodOptions):
    """What one network is sampled with.

    Raises:
        ValueError, TypeError: an option that is unknown, out of range, or contradicts another.
    """

    method: str = option(
        "paper",
        "preset of the options above: paper (Gaussian rows, uncentred orthogonal alignment, sqrt(d/n)), calibrated "
        "(orthogonal alignment with means, variances and scales set right), or regression (layerwise regression on "
        "random features, the upper reference, not a rainbow network).",
        lambda name, value: one_of(name, value, METHODS),
    )
    width: int | Mapping[str, int] | None = option(
        None, "neurons of each site: an int, or a dict by site, in which others keep the reference's width."
    )
    factor: float | None = option(
        None,
        "multiplies the reference's widths; 1 by default. One of width and factor.",
        _optional(_between(0, math.inf, "a finite number above 0", open_low=True, open_high=True)),
    )
    rank: int | str | Mapping[str, int | str] | None = option(
        None,
        f"combine the leading r directions of z only: an int (at most d), {NOISE_EDGE} for as many as the writer's "
        "weights have above noise (not if it is grouped), or a dict by site. None uses z itself.",
    )
    energy: float | None = option(
        None,
        "the least rank that holds this share of the variance. One of rank and energy.",
        _optional(_between(0, 1, "0 < energy <= 1", open_low=True)),
    )
    sites: Sequence[str] | None = option(
        None, "names of those to sample; all but output activations and gates by default."
    )
    seed: int = option(
        0,
        "address of the random numbers, with network: 0 <= seed < 2^63.",
        lambda name, value: integer(name, value, 0, 2**63 - 1),
    )
    network: int = option(
        0,
        "number of the network; those of one seed are independent. 0 <= network < 2^20; the stream of a site is "
        "network << 12 | site.",
        lambda name, value: integer(name, value, 0, 2**NETWORK_BITS - 1),
    )
    classifier: str | None = option(
        None,
        "None keeps the trained one, which sees phih. refit fits one to the wide features phi' of the last site by "
        "ridge regression (it holds all of them, N x n, meanwhile), refit_aligned to phih.",
        _classifier,
    )
    align: str = option(
        "channels",
        "channels, positions being samples; or flattened: a site that feeds a Flatten is aligned on all its features "
        "(d p, n p) at once.",
        _align,
    )
    accuracy_profile: bool = option(
        False, "also measure the held-out accuracy with sites 1..j sampled (quadratic in depth).", flag
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in (("width", "factor"), ("rank", "energy")):
            values = getattr(self, one), getattr(self, other)
            if values[0] is not None and values[1] is not None:
                raise ValueError(f"{one}={values[0]} and {other}={values[1]}: wanted one of the two")
        _check_method(self.resolved)

    @cached_property
    def resolved(self) -> SampleOptions:
        """The same, with what the method has in the place of None.

        Two options follow from another unless they are given: a law may keep the mean row, as the bootstrap does, and
        the regression has scale one and a ridge of 1e-3.
        """
        chosen = {f.name: getattr(self, f.name) for f in fields(MethodOptions) if getattr(self, f.name) is not None}
        preset = {f.name: getattr(METHODS[self.method], f.name) for f in fields(MethodOptions)}
        follows: dict[str, Any] = {}
        if "law" in chosen and _class_of(chosen["law"], LAWS).keeps_mean:
            follows["mean_row"] = True
        if "alignment" in chosen:
            regresses = _class_of(chosen["alignment"], ALIGNMENTS).scales_itself
            follows["scale"] = "one" if regresses else preset["scale"] if self.method != "regression" else PAPER.scale
            follows["ridge"] = METHODS["regression"].ridge if chosen["alignment"] == "regression" else PAPER.ridge
        resolved = object.__new__(SampleOptions)
        for f in fields(self):
            object.__setattr__(resolved, f.name, (vars(self) | preset | follows | chosen)[f.name])
        resolved.__dict__["resolved"] = resolved
        return resolved

    @property
    def parts(self) -> MethodOptions:
        """What the method consists of, resolved."""
        return MethodOptions(**{f.name: getattr(self.resolved, f.name) for f in fields(MethodOptions)})


def law_of(options: MethodOptions) -> Law:
    """The law that resolved options name, or are given."""
    return options.law if not isinstance(options.law, str) else _built(LAWS[options.law], options)


def alignment_of(options: MethodOptions) -> Alignment:
    """The alignment that resolved options name, or are given."""
    return (
        options.alignment if not isinstance(options.alignment, str) else _built(ALIGNMENTS[options.alignment], options)
    )


def _built(kind: type[Any], options: MethodOptions) -> Any:
    """A named law or alignment, its own fields from the options of that name."""
    names = {f.name for f in fields(kind)} & {f.name for f in fields(MethodOptions)}
    return kind(**{name: getattr(options, name) for name in names})


def _class_of(law_or_alignment: Any, names: Mapping[str, type[Any]]) -> Any:
    return names[law_or_alignment] if isinstance(law_or_alignment, str) else law_or_alignment


def _check_method(options: MethodOptions) -> None:
    """What contradicts what in resolved options."""
    law, alignment = options.law, options.alignment
    if options.center and not options.offset:
        raise ValueError("center=True with offset=False: a centred alignment without its offset destroys the means")
    if options.h and law != "bootstrap":
        raise ValueError(f"h={options.h} with law={law!r}: wanted law='bootstrap', which alone is smoothed")
    if _class_of(law, LAWS).keeps_mean and not options.mean_row:
        raise ValueError(f"mean_row=False with law={law!r}: that law keeps the mean row")
    if options.ridge and alignment != "regression":
        raise ValueError(f"ridge={options.ridge} with alignment={alignment!r}: wanted alignment='regression'")
    if _class_of(alignment, ALIGNMENTS).scales_itself and options.scale != "one":
        raise ValueError(f"scale={options.scale!r} with alignment={alignment!r}, which scales itself: wanted 'one'")
