# SPDX-License-Identifier: BSD-3-Clause
"""What a sampling run takes, before it starts: flops, bytes, memory at its peak, and the time that these predict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rainbow_fast.plots.by_site import cost_by_site
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.results import Results
from rainbow_fast.tables import duration, quantity

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Work:
    """One pass over the data, or one piece of algebra.

    Attributes:
        flops: multiplications and additions.
        rate: the field of `Machine` that they run at.
        features: activations of the fused passes.
        pooled: numbers that max-pooling reads.
        bytes: read and written by elementwise steps; inputs and results of products, once each.
    """

    flops: float = 0.0
    rate: str = "kernels"
    features: float = 0.0
    pooled: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        assert self.rate == other.rate
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in COUNTS})

    def __mul__(self, times: int) -> Work:
        return replace(self, **{name: times * getattr(self, name) for name in COUNTS})

    def seconds(self, machine: Machine) -> float:
        """Its arithmetic or its traffic, whichever takes longer."""
        arithmetic = self.flops / getattr(machine, self.rate) + self.features / machine.activations
        return max(arithmetic + self.pooled / machine.pooling, self.bytes / machine.copy)


@dataclass(frozen=True)
class SiteCost:
    """One sampled site.

    Attributes:
        index, site: place in the full list of sites, name of the activation module.
        d, n, rank, samples: as in `SiteReport`: of `samples`, images times positions, M is the mean.
        work: by pass. ``reference``: its own layers before this site, for both networks; ``moments``: the features with
            their covariance, and their second moment for the regression; ``alignment``: polar; ``solve``: float64
            algebra of the regression and of an orthonormal law; ``projection``: the features with A; ``elementwise``:
            statistics, scales, errors.
        in_flight_bytes: activations of the reference and of the sample over all data, at most.
        float64_bytes: M, what is computed from it, and the regression's (n, n) matrices, at most.
        A_bytes: of the alignment: d n numbers, (d p)(n p) where it is flattened.
        disk_bytes: what `rainbow_fast.save` writes of it.
        peak_bytes: the sum of what is in flight, in float64, and temporary in a pass (A, a chunk of activations), with
            the law and what the sites before have left.
    """

    index: int
    site: str
    d: int
    n: int
    rank: int
    samples: int
    work: dict[str, Work]
    in_flight_bytes: int
    float64_bytes: int
    A_bytes: int
    disk_bytes: int
    peak_bytes: int

    def seconds(self, machine: Machine) -> float:
        return sum(work.seconds(machine) for work in self.work.values())


@dataclass(frozen=True)
class Cost(Results):
    """What one sampling run takes; `print` gives a table.

    Attributes:
        method: as asked for.
        images, held_out_images: of the two data sets.
        sites: a `SiteCost` each, in order of execution.
        rest: work of the run beside its sites: ``fit`` where that is part of it, layers that no sampled site follows,
            the refit of a ``classifier``, ``accuracy``.
        peak_bytes: memory in use at the worst moment, above what there was before the run (the data among it), without
            the holes of the allocator: with glibc's a process may grow by up to three times as much where the blocks
            are below 32 MB, as much where they are above.
        disk_bytes: what `rainbow_fast.save` writes, but for a header of a few hundred bytes.
        machine: the rates behind `seconds`.
    """

    method: str
    images: int
    held_out_images: int
    sites: tuple[SiteCost, ...]
    rest: dict[str, Work]
    peak_bytes: int
    disk_bytes: int
    machine: Machine

    @property
    def flops(self) -> float:
        works = [work for site in self.sites for work in site.work.values()]
        return sum(work.flops for work in [*works, *self.rest.values()])

    @property
    def seconds(self) -> float:
        """Predicted. A run below a tenth of a second is mostly Python's, which is not counted."""
        return sum(site.seconds(self.machine) for site in self.sites) + self.rest_seconds

    @property
    def fit_seconds(self) -> float:
        """Of `seconds`, what `fit` takes; 0 for a model that is fitted."""
        return sum(work.seconds(self.machine) for name, work in self.rest.items() if name in FIT)

    @property
    def rest_seconds(self) -> float:
        return sum(work.seconds(self.machine) for work in self.rest.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dicts."""
        result = asdict(self) | {"flops": self.flops, "seconds": self.seconds}
        result["sites"] = list(result["sites"])
        for entry, site in zip(result["sites"], self.sites, strict=True):
            entry["seconds"] = site.seconds(self.machine)
        return result

    def to_pandas(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` of one row a site, in order of execution. The rest of the run has no row.

        Columns are the attributes of `SiteCost` and its `seconds`; in place of `work` there are `<pass>_flops` and
        `<pass>_seconds` for each pass.

        Raises:
            ImportError: pandas is missing.
        """
        return super().to_pandas()

    def plot(self) -> Figure:
        """One figure: predicted seconds by site and pass, and the peak memory of each site (`plots.cost_by_site`).

        Returns:
            A `matplotlib.figure.Figure` of 8 by at most 10.5 inches.

        Raises:
            ImportError: matplotlib is missing.
        """
        records = [
            {
                "site": site.site,
                "seconds": {name: work.seconds(self.machine) for name, work in site.work.items()},
                "peak_bytes": site.peak_bytes,
            }
            for site in self.sites
        ]
        return cost_by_site(records, rest=self.rest_seconds, title=self._above()[0].replace(": ", "\n"))

    def _records(self) -> list[dict[str, Any]]:
        records = []
        for site in self.sites:
            record = asdict(site) | {"seconds": site.seconds(self.machine)}
            del record["work"]
            for name, work in site.work.items():
                record |= {f"{name}_flops": work.flops, f"{name}_seconds": work.seconds(self.machine)}
            records.append(record)
        return records

    def rows(self) -> list[list[str]]:
        """The table below its heading `COLUMNS`: a row for each site, one for the rest, one for the whole run."""
        rows = []
        for site in self.sites:
            sizes = [site.site, *map(str, (site.d, site.n, site.rank, site.samples))]
            numbers = [site.work[name].flops for name in PASSES] + [getattr(site, f"{name}_bytes") for name in MEMORY]
            rows.append([*sizes, *map(quantity, numbers), duration(site.seconds(self.machine))])
        rest = sum(work.flops for work in self.rest.values())
        blanks = [""] * (len(PASSES) - 1 + len(MEMORY))
        rows.append(["rest", *[""] * 4, quantity(rest), *blanks, duration(self.rest_seconds)])
        flops = [sum(site.work[name].flops for site in self.sites) for name in PASSES]
        in_flight, float64 = (max(getattr(site, f"{name}_bytes") for site in self.sites) for name in MEMORY[:2])
        memory = in_flight, float64, sum(site.A_bytes for site in self.sites), self.disk_bytes, self.peak_bytes
        numbers = [flops[0] + rest, *flops[1:], *memory]
        rows.append(["all", *[""] * 4, *map(quantity, numbers), duration(self.seconds)])
        return rows

    def _cells(self) -> list[list[str]]:
        return [list(COLUMNS), *self.rows()]

    def _above(self) -> list[str]:
        summary = (
            f"method {self.method}, {self.images} samples, {self.held_out_images} held out: "
            f"{quantity(self.flops)}flop, {quantity(self.peak_bytes)}B at the peak, {duration(self.seconds)} s"
        )
        return [summary]


COUNTS = ("flops", "features", "pooled", "bytes")  # of `Work`
FIT = ("fit", "fit, moments")  # of `Cost.rest`
PASSES = ("reference", "moments", "alignment", "solve", "projection")  # of `SiteCost.work`, those with flops
MEMORY = ("in_flight", "float64", "A", "disk", "peak")  # of `SiteCost`, `..._bytes`
COLUMNS = (
    *("site", "d", "n", "rank", "samples"),
    *(f"flops: {PASSES[0]}", *PASSES[1:]),
    *("bytes: in flight", *MEMORY[1:]),
    "seconds",
)
