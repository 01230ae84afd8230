# SPDX-License-Identifier: BSD-3-Clause
"""The report on a sampled network: the options that were used, and the errors of every site."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor
from torch.linalg import vector_norm

from rainbow_fast.io import infinite
from rainbow_fast.plots.by_site import alignment_by_site
from rainbow_fast.rainbow.channel_moments import SMALL, ChannelMoments
from rainbow_fast.rainbow.options import MethodOptions, SampleOptions
from rainbow_fast.rainbow.results import Results
from rainbow_fast.tables import cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]

PIECE = 2**17  # numbers that are subtracted at a time, so that their difference is still in the cache to be summed


@dataclass
class SiteReport:
    """The report on one sampled site.

    All errors are squared and relative. Held-out errors are None if no data was held out.

    Undefined numbers are NaN, and null in JSON, where infinite ones are "inf". An error is undefined if phi has power
    or variance 0, or if data is not finite. Similarity, effective rank and condition are undefined if phi is constant
    and the method has an offset.

    Attributes:
        index: place in the list of all sites.
        site: name of the site.
        d: neurons of the reference (of one of them, if there are several).
        n: neurons of the sampled network; infinite for a closed form.
        rank: number of directions of z that are combined.
        samples: number of samples that M is the mean of: images times positions.
        error: E|phih - phi|^2 / E|phi|^2 on the alignment set.
        error_centred: E|phih - phi|^2 / E|phi - E phi|^2 on the alignment set.
        held_out_error, held_out_error_centred: the same on the held-out data.
        similarity: |M|_* / sqrt(E|phi|^2 E|phi'|^2), between 0 and 1. If the method centres M, phi and phi' are centred
            as well.
        scale: s. It is 0 if phi is constant and the scale is the optimal one.
        activity: fraction of positive z in the reference, over all neurons, on a part of the samples.
        sampled_activity: the same for z' in the sampled network.
        M_rank: number of singular values of M that are kept.
        M_effective_rank: |M|_*^2 / |M|_F^2.
        M_condition: largest over smallest kept singular value of M.
        random_features: whether the reference has random features here (`rainbow_fast.nn.RandomFeatures`), so that
            the Gaussian law and its rank are exact.
        route: how features were computed: ``"fused"``, in two passes of kernels that store none; ``"kept"``, once, from
            z; ``"wide"``, once, from the features of the site before, by the wide weights ``W' = s G_eff W A``;
            ``"limit"``, only their kernel, for infinitely many neurons.
        features: number of features of a neuron: 1, or 5 or 10 of wavelets. Activities of wavelets are NaN.
    """

    index: int
    site: str
    d: int
    n: int | float
    rank: int
    samples: int
    error: float
    error_centred: float
    held_out_error: float | None
    held_out_error_centred: float | None
    similarity: float
    scale: float
    activity: float
    sampled_activity: float
    M_rank: int
    M_effective_rank: float
    M_condition: float
    route: str = "fused"
    random_features: bool = False
    features: int = 1

    @classmethod
    def from_dict(cls, values: Record, *, held_out: bool) -> SiteReport:
        """The report from a dict of its fields. A null stands for a number that is not finite: NaN, or an infinite n.

        Args:
            values: the fields. Reports of earlier versions have no `route`, no `random_features`, or no `features`.
            held_out: whether data was held out. Without, a null is None for the held-out errors.

        Raises:
            ValueError: a field is missing, unknown, or of another type.
        """
        values = {"route": "fused", "random_features": False, "features": 1} | values
        if values.get("n", 1) is None:
            values["n"] = math.inf
        unknown = values.keys() ^ {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a site's report: field {min(unknown)!r} is missing or unknown")
        absent = () if held_out else ("held_out_error", "held_out_error_centred")
        numbers = {name: math.nan if v is None and name not in absent else v for name, v in values.items()}
        try:
            return msgspec.convert(numbers, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"a site's report: {error}") from error


@dataclass
class Report(Results):
    """The report on a sampled network: its options, its accuracies, and a `SiteReport` for each sampled site.

    `print` gives a table.

    Attributes:
        options: the options of the network, with the values that the method presets.
        samples, held_out_samples: size of the alignment set and of the held-out data (images, not positions).
        holdout_seed: seed with which the held-out samples were drawn from the data; None if they are other data, or
            none.
        sites: a `SiteReport` for each sampled site, in order of execution.
        kept: the sites that were not sampled, each with the reason.
        accuracy: accuracies between 0 and 1, empty without labels. The keys are `alignment` and `held_out` for the
            sampled network, `reference_alignment` and `reference_held_out` for the reference. With a refit
            classifier, `trained_classifier_alignment` and `trained_classifier_held_out` are the accuracies of the
            sampled network with the trained classifier.
        metric: the values of the option `metric` under the same keys, empty without it. There are no accuracies then.
        accuracy_profile: held-out accuracies, or values of the metric, with only the first j sites sampled, for every
            j; None unless the option `accuracy_profile` is set.
        ridge: ridge parameter of a refit classifier, relative to the mean eigenvalue of the covariance of the features
            that it reads; at infinite width, of the m features ``R^{-T} k``. For m = N this is the mean diagonal of the
            centred kernel. None without a refit classifier.
        storage: where activations were stored between two sites.
        references: number of references. Several are aligned to their mean.
    """

    options: SampleOptions
    samples: int
    held_out_samples: int
    sites: list[SiteReport] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    accuracy_profile: list[float] | None = None
    ridge: float | None = None
    storage: str = ""
    references: int = 1
    holdout_seed: int | None = None
    metric: dict[str, float] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.options.method

    @property
    def parts(self) -> MethodOptions:
        """The options that the method consists of, with their values."""
        return self.options.parts

    def to_dict(self) -> dict[str, Any]:
        """All fields as numbers, strings, lists and dicts."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {"options": self.options.to_dict(), "sites": [asdict(site) for site in self.sites]}

    @classmethod
    def from_dict(cls, values: Record) -> Report:
        """The report from the result of `to_dict`, also after JSON. A null in the place of a number becomes NaN.

        Raises:
            ValueError, TypeError: the dict is not such a result.
        """
        try:
            stored = msgspec.convert(infinite(values), _Stored)
        except msgspec.ValidationError as error:
            raise ValueError(f"no report of a sampled network: {error}") from error
        own = {name: getattr(stored, name) for name in stored.__struct_fields__}
        own["options"] = SampleOptions.from_dict(stored.options)
        own["sites"] = [SiteReport.from_dict(site, held_out=stored.held_out_samples > 0) for site in stored.sites]
        for name in ("accuracy", "metric"):
            own[name] = {key: _number(value) for key, value in own[name].items()}
        own["accuracy_profile"] = stored.accuracy_profile and [_number(value) for value in stored.accuracy_profile]
        return cls(**own)

    def records(self, *, factor: float | None = None) -> list[Record]:
        """A record for each site, made of numbers and names only.

        In a record, `error` is E|phih - phi|^2 / E|phi|^2 on the held-out data, and `alignment_error` the same on the
        alignment set. `error_centred` and `alignment_error_centred` are relative to E|phi - E phi|^2. Accuracies are
        None without labels.

        Args:
            factor: the ratio n / d for the records. Default: that of all sites together, to three digits.
        """
        if factor is None:
            ratio = sum(site.n for site in self.sites) / sum(site.d for site in self.sites)
            factor = float(f"{ratio:.3g}")
        of_network = {
            "method": self.method,
            "factor": factor,
            "network": self.options.network_index,
            "seed": self.options.seed,
            "align": "flattened" if self.options.align_flattened else "channels",
            "classifier": self.options.classifier,
            "accuracy": self.accuracy.get("held_out"),
            "reference_accuracy": self.accuracy.get("reference_held_out"),
            "images": self.samples,
            "held_out_images": self.held_out_samples,
        }
        records = []
        for site in self.to_dict()["sites"]:
            for name in ("error", "error_centred"):
                site |= {f"alignment_{name}": site[name], name: site.pop(f"held_out_{name}")}
            records.append(of_network | site)
        return records

    def plot(self) -> Figure:
        """One figure: similarity, errors and the rank of M by site (`plots.alignment_by_site`).

        Returns:
            A `matplotlib.figure.Figure` of 8 by at most 10.5 inches. Its title has the method and the accuracies.

        Raises:
            ImportError: matplotlib is missing.
        """
        title = f"method {self.method}, {self.samples} samples, {self.held_out_samples} held out"
        data = "held_out" if "held_out" in self.accuracy else "alignment"
        if data in self.accuracy:
            accuracy, reference = (100 * self.accuracy[name] for name in (data, f"reference_{data}"))
            title += f"\naccuracy {accuracy:.1f} %, trained network {reference:.1f} % ({data.replace('_', '-')} data)"
        return alignment_by_site(self._records(), title=title)

    def _records(self) -> list[Record]:
        return [asdict(site) for site in self.sites]

    def _cells(self) -> list[list[str]]:
        return [list(_COLUMNS.values()), *([cell(getattr(site, name)) for name in _COLUMNS] for site in self.sites)]

    def _above(self) -> list[str]:
        options = self.options
        wavelets = any(site.features > 1 for site in self.sites)
        own = () if wavelets else ("alignment_blocks", "statistics")
        parts = ", ".join(f"{name}={value}" for name, value in self.parts.to_dict().items() if name not in own)
        drawn = "" if self.holdout_seed is None else f" (drawn at random, holdout_seed={self.holdout_seed})"
        return [
            f"method {self.method}: {parts}",
            f"align_flattened={options.align_flattened}, classifier={options.classifier}, seed={options.seed}, "
            f"network_index={options.network_index}, precision={options.precision}; "
            f"{self.samples} samples, {self.held_out_samples} held out{drawn}",
        ]

    def _below(self) -> list[str]:
        lines = [f"{self.references} references, aligned to their mean"] if self.references > 1 else []
        lines += [self.storage] if self.storage else []
        random = [site.site for site in self.sites if site.random_features]
        exact = ", whose law is exact" * (self.parts.law == "gaussian")
        lines += [f"random features of the reference{exact}: {', '.join(random)}"] if random else []
        lines += [f"kept {name}: {reason}" for name, reason in self.kept.items()]
        for what, numbers in (("accuracy", self.accuracy), ("metric", self.metric)):
            if numbers:
                lines.append(f"{what}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
        if self.accuracy_profile is not None:
            lines.append("accuracy profile: " + " ".join(f"{value:.4f}" for value in self.accuracy_profile))
        return lines


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    """The types of the fields of a `Report` in JSON."""

    options: dict[str, Any]
    samples: int
    held_out_samples: int
    sites: list[dict[str, Any]]
    kept: dict[str, str]
    accuracy: dict[str, float | None]
    accuracy_profile: list[float | None] | None
    ridge: float | None
    storage: str
    references: int
    holdout_seed: int | None = None
    metric: dict[str, float | None] = {}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


class Error:
    """Mean of |phih - phi|^2 relative to the power and to the variance of phi, accumulated over batches.

    The first is NaN if phi is zero, the second if phi is constant up to rounding.

    Args:
        phi: the moments of phi, if they are known. Otherwise they are measured on the batches.
        piece: how many numbers of phih - phi are in memory at a time, but at least one sample.
    """

    def __init__(self, phi: ChannelMoments | None = None, *, piece: int = PIECE) -> None:
        self.difference, self.has_moments, self.piece = 0.0, phi is not None, piece
        self.phi = ChannelMoments() if phi is None else phi

    def update(self, phi: Tensor, phih: Tensor) -> None:
        if not self.has_moments:
            self.phi.update(phi)
        size = max(self.piece // max(phi[:1].numel(), 1), 1)
        self.difference += _sum_of_squares(phih, phi, size)

    def relative(self) -> tuple[float, float]:
        return tuple(
            self.difference / self.phi.count / size if size > 0 else float("nan")
            for size in (self.phi.power, 0.0 if self.phi.constant else self.phi.spread)
        )  # type: ignore[return-value]


def _sum_of_squares(phih: Tensor, phi: Tensor, size: int) -> float:
    """The sum of |phih - phi|^2, `size` samples at a time; in float64 if squares are outside the range of float32."""
    for dtype in (torch.promote_types(phi.dtype, torch.float32), torch.float64):
        parts = [_squares(a, b, dtype) for a, b in zip(phih.split(size), phi.split(size), strict=True)]
        total = float(torch.cat(parts).sum())
        if SMALL * phi.numel() <= total < math.inf:
            break
    return total


def _squares(phih: Tensor, phi: Tensor, dtype: torch.dtype) -> Tensor:
    """|phih - phi|^2 of each sample and channel, float64."""
    difference = (phih - phi).flatten(min(phi.dim() - 1, 2)).to(dtype)
    return vector_norm(difference, dim=-1).double().square_().flatten()


_COLUMNS = {
    "site": "site", "d": "d", "n": "n", "rank": "rank", "samples": "samples", "error": "error",
    "error_centred": "centred", "held_out_error": "held out", "held_out_error_centred": "centred",
    "similarity": "similarity", "scale": "scale", "activity": "active", "sampled_activity": "sampled",
    "M_rank": "rank M", "M_effective_rank": "eff.", "M_condition": "condition",
    "route": "route",
}  # fmt: skip
