# SPDX-License-Identifier: BSD-3-Clause
"""The options of fitting and sampling. Each is declared once: name, type, default, check and help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.arguments import between, bytes_of, flag, folder, integer, one_of, optional
from rainbow_fast.fields import Former, Options, documented, option
from rainbow_fast.ops.gaussian import NETWORK_BITS
from rainbow_fast.ops.precision import PRECISIONS
from rainbow_fast.rainbow import option_checks
from rainbow_fast.rainbow.alignment import ALIGNMENTS, Alignment
from rainbow_fast.rainbow.alignment.regression import RIDGE
from rainbow_fast.rainbow.laws import LAWS, Law
from rainbow_fast.rainbow.laws.bootstrap_rows import SMOOTHING
from rainbow_fast.rainbow.laws.marchenko_pastur import NOISE_EDGE
from rainbow_fast.rainbow.option_checks import HOLDOUT

SCALES = ("sqrt", "optimal", "nuclear", "one")
BLOCKS = ("filter", "full", "shared")
STATISTICS = ("restore", "running")


@documented
@dataclass(frozen=True)
class FitOptions(Options):
    """What a model is fitted with, beside its reference and its data."""

    holdout: object = option(
        HOLDOUT,
        "What errors and accuracies are also measured on, apart from the samples that networks are aligned on: data of "
        "the same kinds as `data`; or a number of samples, or a fraction of them, drawn at random from `data`. 0 holds "
        f"nothing out; None is the default, {HOLDOUT}.",
        option_checks.holdout,
    )
    holdout_seed: int = option(
        0,
        "Seed of the random choice of the held-out samples.",
        lambda name, value: integer(name, value, 0, 2**63 - 1),
    )
    images: int | None = option(
        None,
        "Use the first `images` samples of the data only (default: all).",
        optional(lambda name, value: integer(name, value, 1)),
    )
    max_samples: int = option(
        400_000,
        "Number of samples that the moments of a site are estimated from. Every position of a feature map is one "
        "sample. Where there are more, every t-th is used; t is odd and has no common divisor with the positions.",
        lambda name, value: integer(name, value, 1),
    )
    pointwise_modules: Iterable[type[nn.Module]] = option(
        (),
        "Your own module classes that apply one function to every number, so that they can be sampled.",
        lambda _, kinds: tuple(kinds),
        former=Former("pointwise"),
    )
    channel_axes: Mapping[str, int] | None = option(
        None,
        "The channel axis of z for sites by name, in the place of the one that is found: 1 or -1, the second or the "
        "last axis. A site whose axis is not known can so be sampled.",
        option_checks.channel_axes,
    )
    output: str | int | None = option(
        None,
        "Name of the output that is compared with labels, or its place in a tuple. Only this output must then depend "
        "on each sample alone. By default the only tensor, or the one named logits, is compared, and all outputs must "
        "depend on each sample alone.",
        option_checks.output,
    )
    metric: Callable[[Tensor, Tensor], Any] | None = option(
        None,
        "What is measured in the place of the accuracy: a function of all outputs and all labels that returns a number "
        "(default: the share of samples, or of positions, whose largest output is that of their label).",
        option_checks.metric,
    )
    procrustes_iterations: int = option(
        2,
        "Iterations of the generalised Procrustes alignment of several references. With 1 they are rotated onto the "
        "first one.",
        lambda name, value: integer(name, value, 1),
        former=Former("iterations"),
    )
    batch_size: int | None = option(
        None,
        "Samples that are computed on at a time (default: as many as have 2^21 numbers in their largest feature "
        "map, or up to 2^24 if sites have many channels and few positions).",
        optional(lambda name, value: integer(name, value, 1)),
        former=Former("chunk"),
    )


@documented
@dataclass(frozen=True)
class DataLimits(Options):
    """What limits the memory that data may take."""

    memory_budget: int | None = option(
        None,
        "Bytes of memory for the data, unless they are a tensor already, and as many again for the activations of all "
        "samples between two sites (default: no limit). What is larger is spilled to disk. If the disk is too small as "
        "well, the activations are computed again for every site, in a time quadratic in depth.",
        optional(bytes_of),
    )
    scratch_dir: str | None = option(
        None,
        "An existing folder for what is spilled to disk (default: the system's folder for temporary files).",
        optional(folder),
        former=Former("scratch"),
    )


@documented
@dataclass(frozen=True)
class Limits(DataLimits):
    """What limits a run: its memory and its disk space; and the folder that an interrupted run continues from."""

    storage: str | None = option(
        None,
        "Where the activations are kept between two sites: 'memory', 'file' or 'recompute' (default: the first of them "
        "with enough room). The choice does not change the result.",
        option_checks.storage,
    )
    storage_dtype: torch.dtype | None = option(
        None,
        "torch.bfloat16 rounds the activations that are kept, which halves their size (default: they are not rounded).",
        option_checks.storage_dtype,
    )
    resume_dir: str | None = option(
        None,
        "A folder that every finished site is written to; it is made if it is missing. If the run is interrupted, the "
        "same call continues after the last finished site, and gives the same bits as a run without interruption. "
        "Remove the folder when you no longer need it.",
        former=Former("resume"),
    )


@documented
@dataclass(frozen=True)
class MethodOptions(Options):
    """How one site is sampled and aligned: the options that a method presets. phi' are the features of the wide,
    sampled layer (normalised if the site ends in a normalisation). None means the value that the method presets.
    """

    law: str | Law = option(
        None,
        f"Law of the random rows of G_eff: {', '.join(LAWS)} (see `rainbow_fast.rainbow.laws`), or a `Law` object.",
        optional(option_checks.named(LAWS, Law)),
    )
    keep_mean: bool = option(
        None,
        "Leave the mean zbar of zh over the channels unchanged: z'_i = zbar + g_i (zh - zbar) / sqrt(d).",
        optional(option_checks.true_or_false),
        former=Former("mean_row"),
    )
    recalibrate: bool = option(
        None,
        "Give every channel of zh the mean and the variance that it has in the reference, from the second sampled site "
        "on.",
        optional(option_checks.true_or_false),
    )
    center: bool = option(
        None,
        "Align the centred features: M = E[phi phi'^T] - mu mu'^T instead of E[phi phi'^T].",
        optional(option_checks.true_or_false),
    )
    offset: bool = option(
        None,
        "Add the constant c = mu - s A mu', so that phih has the mean of phi.",
        optional(option_checks.true_or_false),
    )
    scale: str = option(
        None,
        "The factor s of the alignment. sqrt: sqrt(d / n); optimal: tr(A M^T) / E|A phi'|^2 (centred moments if there "
        "is an offset); nuclear: |M|_* / E|phi'|^2; one: 1.",
        optional(lambda name, value: one_of(name, value, SCALES)),
    )
    alignment: str | Alignment = option(
        None,
        f"The alignment A: {', '.join(ALIGNMENTS)} (see `rainbow_fast.rainbow.alignment`), or an `Alignment` object. "
        "polar: A = U V^T of M = U S V^T, which maps null directions to zero; polar_complete maps null directions by "
        "an isometry; regression: A = M (S' + lambda I)^-1 with S' = E[phi' phi'^T] (n, n), a layerwise regression on "
        "random features, which is not a rainbow network.",
        optional(option_checks.named(ALIGNMENTS, Alignment)),
    )
    ridge: float = option(
        None,
        "Ridge lambda of the regression, relative to the mean of the diagonal of S'.",
        optional(RIDGE),
    )
    smoothing: float = option(
        None,
        "Share h of new Gaussian noise in the rows of the bootstrap, from 0 (the reference's own neurons) to 1.",
        optional(SMOOTHING),
        former=Former("h"),
    )
    alignment_blocks: str = option(
        None,
        "What A mixes at a site of wavelets, whose neurons have a feature for each filter. filter: one A for each "
        "filter, between channels only; full: one A of all features; shared: the same A of the channels for all "
        "filters. Other sites have one feature a neuron, and one A.",
        optional(lambda name, value: one_of(name, value, BLOCKS)),
    )
    statistics: str = option(
        None,
        "Units of phih at a site of wavelets that ends in a standardisation. restore: phi is standardised by its own "
        "statistics on the alignment set, aligned, and mapped back, so that the reference's own neurons give exactly "
        "phi; running: phi stays as the running averages have standardised it, and phih has the units of the alignment "
        "set, as in the published code. Other sites are always as with running.",
        optional(lambda name, value: one_of(name, value, STATISTICS)),
    )


PAPER = MethodOptions("gaussian", False, False, False, False, "sqrt", "polar", 0.0, 0.0, "full", "restore")
CALIBRATED = replace(
    PAPER, law="orthonormal", keep_mean=True, recalibrate=True, center=True, offset=True, scale="optimal",
    alignment_blocks="filter",
)  # fmt: skip
METHODS = {
    "paper": PAPER,
    "calibrated": CALIBRATED,
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
        "Preset of the options above. paper: Gaussian rows, uncentred orthogonal alignment, scale sqrt(d / n). "
        "calibrated: orthogonal alignment with corrected means, variances and scales; take this one if unsure. "
        "regression: layerwise regression on random features, an upper bound that is not a rainbow network.",
        lambda name, value: one_of(name, value, METHODS),
    )
    width: float | Mapping[str, float] | None = option(
        None,
        "Neurons of every site: an int, or a dict from site names to ints; sites that it does not name keep the "
        "reference's width. math.inf samples the limit of infinitely many neurons, in closed form.",
    )
    factor: float | None = option(
        None,
        "Widths as a multiple of the reference's (default: 1); math.inf for the limit. Give width or factor, not both.",
        optional(between(0, math.inf, "a number above 0", open_low=True)),
    )
    limit_rows: int = option(
        4096,
        "Samples of the alignment set (for a new classifier, images) that the kernel of a site of infinite width is "
        "expanded in. If there are more, so many are drawn by `seed`, and the kernel is Nystrom's approximation.",
        lambda name, value: integer(name, value, 1),
    )
    rank: int | str | Mapping[str, int | str] | None = option(
        None,
        "Combine only the r leading principal directions of z: an int (at most d), a dict by site, or "
        f"{NOISE_EDGE}, the number of singular values of the site's weights above those of noise (not for grouped "
        "convolutions). Default: all directions.",
    )
    explained_variance: float | None = option(
        None,
        "Choose the smallest rank that explains this fraction of the variance of z. Give rank or explained_variance, "
        "not both.",
        optional(between(0, 1, "0 < explained_variance <= 1", open_low=True)),
        former=Former("energy"),
    )
    sites: Sequence[str] | None = option(
        None, "Names of the sites to sample (default: all but output activations and gates)."
    )
    seed: int = option(
        0,
        "Seed of the random numbers, 0 to 2^63 - 1.",
        lambda name, value: integer(name, value, 0, 2**63 - 1),
    )
    network_index: int = option(
        0,
        "Index of the network, 0 to 2^20 - 1. Networks of one seed with different indices are independent. A site "
        "draws from stream network_index << 12 | site.",
        lambda name, value: integer(name, value, 0, 2**NETWORK_BITS - 1),
        former=Former("network"),
    )
    precision: str | None = option(
        None,
        "Precision of the float32 products of the sampled network. highest: in full; high: each factor as the sum of "
        "two bfloat16 numbers, an error of at most 2^-14 of the sum of the absolute products; medium: as one, 2^-7. "
        "Default: what torch's own products are set to on the device of the reference, read once, at the start. CPUs "
        "without a matrix unit always take highest.",
        optional(lambda name, value: one_of(name, value, PRECISIONS)),
    )
    classifier: str | None = option(
        None,
        "None: the trained one. refit: ridge regression on phi', N x n numbers (infinite width: N x limit_rows). "
        "refit_aligned: on phih. retrained: all layers after the last site, trained again on phih, as published.",
        option_checks.classifier,
    )
    align_flattened: bool = option(
        False,
        "Align a site that feeds a Flatten on all its flattened features (d p, n p), not channel by channel with "
        "positions as samples.",
        flag,
        former=Former("align", option_checks.flattened),
    )
    accuracy_profile: bool = option(
        False,
        "Also measure the held-out accuracy with only the first j sites sampled, for every j (quadratic in depth).",
        flag,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, other in (("width", "factor"), ("rank", "explained_variance")):
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
            follows["keep_mean"] = True
        if "alignment" in chosen:
            regresses = _class_of(chosen["alignment"], ALIGNMENTS).scales_itself
            follows["scale"] = "one" if regresses else preset["scale"] if self.method != "regression" else PAPER.scale
            follows["ridge"] = METHODS["regression"].ridge if chosen["alignment"] == "regression" else PAPER.ridge
            if _class_of(chosen["alignment"], ALIGNMENTS).reads_inputs:
                follows["alignment_blocks"] = "full"
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
    if options.smoothing and law != "bootstrap":
        raise ValueError(
            f"smoothing={options.smoothing} with law={law!r}: wanted law='bootstrap', the only smoothed one"
        )
    if _class_of(law, LAWS).keeps_mean and not options.keep_mean:
        raise ValueError(f"keep_mean=False with law={law!r}: wanted True, as this law always keeps the mean")
    if options.ridge and alignment != "regression":
        raise ValueError(f"ridge={options.ridge} with alignment={alignment!r}: wanted alignment='regression'")
    if _class_of(alignment, ALIGNMENTS).reads_inputs and options.alignment_blocks != "full":
        raise ValueError(
            f"alignment_blocks={options.alignment_blocks!r} with alignment={alignment!r}, which reads all features "
            "together: wanted 'full'"
        )
    if _class_of(alignment, ALIGNMENTS).scales_itself and options.scale != "one":
        raise ValueError(f"scale={options.scale!r} with alignment={alignment!r}, which scales itself: wanted 'one'")
