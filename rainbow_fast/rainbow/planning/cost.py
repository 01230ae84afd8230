# SPDX-License-Identifier: BSD-3-Clause
"""The cost of a sampling run: flops, bytes, peak memory, and the time that is predicted from them."""

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
    """The work of one pass over the data, or of one step of algebra.

    Attributes:
        flops: number of multiplications and additions.
        rate: the field of `Machine` with the rate of these flops.
        features: number of activations that fused passes compute.
        pooled: number of values that max-pooling reads.
        bytes: bytes that elementwise steps read and write, and the inputs and results of products, once each.
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
        """Predicted time: the time of the arithmetic or of the memory traffic, whichever is longer."""
        arithmetic = self.flops / getattr(machine, self.rate) + self.features / machine.activations
        return max(arithmetic + self.pooled / machine.pooling, self.bytes / machine.copy)


@dataclass(frozen=True)
class SiteCost:
    """The cost of one sampled site.

    Attributes:
        index: place in the list of all sites.
        site: name of the site.
        d, n, rank, samples, route: as in `SiteReport`.
        work: the work of each pass, by name. ``reference``: the reference's layers before this site, for both networks.
            ``moments``: the features and their covariance; for the regression, also their second moment.
            ``alignment``: the polar factor. ``solve``: float64 algebra of the regression and of an orthonormal law.
            ``projection``: the features, multiplied by A. ``elementwise``: statistics, scales, errors.
        in_flight_bytes: largest memory of the activations of the reference and of the sampled network, over all data.
        float64_bytes: largest memory of M, of matrices computed from it, and of the regression's (n, n) matrices.
        A_bytes: size of the alignment: d n numbers, or (d p)(n p) if the site is flattened.
        disk_bytes: size of the site in the file that `rainbow_fast.save` writes.
        peak_bytes: peak memory: the activations in flight, the law, the sites that have been sampled before, and the
            largest of what the steps hold besides: the sums of M, M with its polar factor, or A with a chunk of
            activations.
    """

    index: int
    site: str
    d: int
    n: int
    rank: int
    samples: int
    route: str
    work: dict[str, Work]
    in_flight_bytes: int
    float64_bytes: int
    A_bytes: int
    disk_bytes: int
    peak_bytes: int

    def seconds(self, machine: Machine) -> float:
        """Predicted time of the site: the sum over its passes."""
        return sum(work.seconds(machine) for work in self.work.values())


@dataclass(frozen=True)
class Cost(Results):
    """The cost of one sampling run. `print` gives a table.

    Attributes:
        method: name of the method.
        images, held_out_images: number of images in the alignment set and in the held-out data.
        sites: a `SiteCost` for each sampled site, in order of execution.
        rest: work of the run that belongs to no sampled site: ``fit`` if it is part of the run, layers after the last
            sampled site, a refit ``classifier``, ``accuracy``.
        peak_bytes: peak memory of the run, in addition to the memory before the run, which includes the data.
            It contains what glibc keeps of freed memory at the end of its heap: as much again, but at most 64 MiB. What
            lies between blocks in use varies from run to run and is not counted.
        disk_bytes: size of the file that `rainbow_fast.save` writes, without a header of a few hundred bytes.
        machine: the rates that `seconds` is computed from.
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
        """Multiplications and additions of the whole run."""
        works = [work for site in self.sites for work in site.work.values()]
        return sum(work.flops for work in [*works, *self.rest.values()])

    @property
    def seconds(self) -> float:
        """Predicted time of the run. Python's overhead is not counted; it dominates runs below a tenth of a second."""
        return sum(site.seconds(self.machine) for site in self.sites) + self.rest_seconds

    @property
    def fit_seconds(self) -> float:
        """The part of `seconds` that `fit` needs; 0 for a model that is already fitted."""
        return sum(work.seconds(self.machine) for name, work in self.rest.items() if name in FIT)

    @property
    def rest_seconds(self) -> float:
        """Predicted time of the work that belongs to no sampled site, see `rest`."""
        return sum(work.seconds(self.machine) for work in self.rest.values())

    def to_dict(self) -> dict[str, Any]:
        """All fields, flops and seconds, as numbers, strings, lists and dicts."""
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
        """The rows of the table with the columns `COLUMNS`: one for each site, one for the rest, one for the run."""
        rows = []
        for site in self.sites:
            sizes = [site.site, *map(str, (site.d, site.n, site.rank, site.samples, site.route))]
            numbers = [site.work[name].flops for name in PASSES] + [getattr(site, f"{name}_bytes") for name in MEMORY]
            rows.append([*sizes, *map(quantity, numbers), duration(site.seconds(self.machine))])
        rest = sum(work.flops for work in self.rest.values())
        blanks = [""] * (len(PASSES) - 1 + len(MEMORY))
        rows.append(["rest", *[""] * 5, quantity(rest), *blanks, duration(self.rest_seconds)])
        flops = [sum(site.work[name].flops for site in self.sites) for name in PASSES]
        in_flight, float64 = (max(getattr(site, f"{name}_bytes") for site in self.sites) for name in MEMORY[:2])
        memory = in_flight, float64, sum(site.A_bytes for site in self.sites), self.disk_bytes, self.peak_bytes
        numbers = [flops[0] + rest, *flops[1:], *memory]
        rows.append(["all", *[""] * 5, *map(quantity, numbers), duration(self.seconds)])
        return rows

    def _cells(self) -> list[list[str]]:
        return [list(COLUMNS), *self.rows()]

    def _above(self) -> list[str]:
        summary = (
            f"method {self.method}, {self.images} samples, {self.held_out_images} held out: "
            f"{quantity(self.flops)}flop, {quantity(self.peak_bytes)}B at the peak, {duration(self.seconds)} s"
        )
        return [summary]


COUNTS = ("flops", "features", "pooled", "bytes")  # fields of `Work` that are counts
FIT = ("fit", "fit, moments")  # keys of `Cost.rest` that belong to `fit`
PASSES = ("reference", "moments", "alignment", "solve", "projection")  # keys of `SiteCost.work` with flops
MEMORY = ("in_flight", "float64", "A", "disk", "peak")  # fields `..._bytes` of `SiteCost`
COLUMNS = (
    *("site", "d", "n", "rank", "samples", "route"),
    *(f"flops: {PASSES[0]}", *PASSES[1:]),
    *("bytes: in flight", *MEMORY[1:]),
    "seconds",
)
