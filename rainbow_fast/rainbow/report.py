# SPDX-License-Identifier: BSD-3-Clause
"""The certificate of a sampled network: what was done, and how close it came, site by site."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rainbow_fast.plots.by_site import alignment_by_site
from rainbow_fast.rainbow.channel_moments import SMALL, ChannelMoments
from rainbow_fast.rainbow.options import MethodOptions, SampleOptions
from rainbow_fast.rainbow.results import Results
from rainbow_fast.tables import cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]

PIECE = 2**17  # numbers whose difference stays in the cache between being made and being summed


@dataclass
class SiteReport:
    """One sampled site. Errors are squared and relative; a held-out number is None where no data was held out. What is
    undefined is NaN, and null in JSON: errors over a power or a variance of 0, and of data that is not finite; where
    phi does not vary and has an offset, similarity, effective rank and condition.

    Attributes:
        index, site: place in the full list of sites, name of the activation module.
        d, n, rank: neurons of the reference, or of one of several; of the sample; and the rank of u.
        samples: images times positions that M is the mean of.
        error, error_centred: E|phih - phi|^2 on the alignment set, over E|phi|^2 and over E|phi - E phi|^2.
        held_out_error, held_out_error_centred: the same on the held-out data.
        similarity: |M|_* / sqrt(E|phi|^2 E|phi'|^2), 0 to 1; all three centred where M is.
        scale: s; 0 where it is the optimal one and phi does not vary.
        activity, sampled_activity: share of positive z and of positive z', over channels, on a part of the samples.
        M_rank, M_effective_rank, M_condition: singular values of M kept, |M|_*^2 / |M|_F^2, largest over smallest kept.
    """

    index: int
    site: str
    d: int
    n: int
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


@dataclass
class Report(Results):
    """What `RainbowModel.sample` did, with all parts of its method, and the certificate of every sampled site.

    Attributes:
        options: as asked for, resolved; `method` and `parts` are its method, by name and in its parts.
        samples, held_out_samples: of the two data sets (images, not positions).
        sites: one `SiteReport` a sampled site, in order of execution.
        kept: what was not sampled, with the reason.
        accuracy: of the sampled network and of the reference on both data sets, 0 to 1; empty without labels. With a
            refit classifier also what the trained one would give: `trained_classifier_...`.
        accuracy_profile: held-out accuracy with sites up to each sampled one sampled and the rest the reference's; None
            unless asked for.
        ridge: of a refit classifier, over the mean eigenvalue; None without one.
        storage: where activations waited between two sites.
        references: how many networks, aligned to their mean, it was sampled from.
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

    @property
    def method(self) -> str:
        """Name of the preset."""
        return self.options.method

    @property
    def parts(self) -> MethodOptions:
        """How sites were sampled and aligned."""
        return self.options.parts

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dicts."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {"options": self.options.to_dict(), "sites": [asdict(site) for site in self.sites]}

    @classmethod
    def from_dict(cls, values: Record) -> Report:
        """What `to_dict` gave, after JSON too: null was NaN where there is a number otherwise."""
        held = bool(values["held_out_samples"])

        def number(name: str, value: Any) -> Any:
            return math.nan if value is None and (held or not name.startswith("held_out")) else value

        sites = [SiteReport(**{name: number(name, value) for name, value in site.items()}) for site in values["sites"]]
        return cls(**values | {"options": SampleOptions.from_dict(values["options"]), "sites": sites})

    def records(self, *, factor: float | None = None) -> list[Record]:
        """A record of each site: numbers and names only.

        `error` is E|phih - phi|^2 / E|phi|^2 on held-out data, `alignment_error` the same on the data of the alignment;
        `..._centred` over E|phi - E phi|^2. Accuracies are None without labels. `factor` is n/d; where it is not given,
        that of all sites together, to three digits.
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
        """One figure: similarity, errors and singular values of M by site (`plots.alignment_by_site`).

        Returns:
            A `matplotlib.figure.Figure` of 8 by at most 10.5 inches, with method and accuracies as its title.

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
        parts = ", ".join(f"{name}={value}" for name, value in self.parts.to_dict().items())
        return [
            f"method {self.method}: {parts}",
            f"align_flattened={options.align_flattened}, classifier={options.classifier}, seed={options.seed}, "
            f"network_index={options.network_index}; "
            f"{self.samples} samples, {self.held_out_samples} held out",
        ]

    def _below(self) -> list[str]:
        lines = [f"{self.references} references, aligned to their mean"] if self.references > 1 else []
        lines += [self.storage] if self.storage else []
        lines += [f"kept {name}: {reason}" for name, reason in self.kept.items()]
        if self.accuracy:
            lines.append("accuracy: " + ", ".join(f"{name} {value:.4f}" for name, value in self.accuracy.items()))
        if self.accuracy_profile is not None:
            lines.append("accuracy profile: " + " ".join(f"{value:.4f}" for value in self.accuracy_profile))
        return lines


class Error:
    """Mean of |phih - phi|^2 over the power and over the variance of phi, a batch at a time; NaN where phi is zero, or
    does not vary but by rounding.

    `phi`: the moments of phi, where they are known; else they are taken from the batches. `piece`: how many numbers of
    phih - phi are held at a time, at least one sample of them.
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
    """|phih - phi|^2, so many samples at a time; in float64 where squares leave the range of float32."""
    for dtype in (torch.promote_types(phi.dtype, torch.float32), torch.float64):
        parts = [_squares(a, b, dtype) for a, b in zip(phih.split(size), phi.split(size), strict=True)]
        total = float(torch.cat(parts).sum())
        if SMALL * phi.numel() <= total < math.inf:
            break
    return total


def _squares(phih: Tensor, phi: Tensor, dtype: torch.dtype) -> Tensor:
    """Of each sample and channel, float64."""
    difference = (phih - phi).flatten(min(phi.dim() - 1, 2)).to(dtype)
    return vector_norm(difference, dim=-1).double().square_().flatten()


_COLUMNS = {
    "site": "site", "d": "d", "n": "n", "rank": "rank", "samples": "samples", "error": "error",
    "error_centred": "centred", "held_out_error": "held out", "held_out_error_centred": "centred",
    "similarity": "similarity", "scale": "scale", "activity": "active", "sampled_activity": "sampled",
    "M_rank": "rank M", "M_effective_rank": "eff.", "M_condition": "condition",
}  # fmt: skip
