# SPDX-License-Identifier: BSD-3-Clause
"""fit and sample: a trained network and its data in, networks of any width out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.data import batches
from rainbow_fast.networks.trace import Trace, trace
from rainbow_fast.rainbow.activation import channels_first
from rainbow_fast.rainbow.flight import Data
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network import CLASSIFIERS, RainbowNetwork, tail_layers
from rainbow_fast.rainbow.parts import resolve
from rainbow_fast.rainbow.plan import NETWORK_BITS, Plan, Widths, choose_directions, choose_sites, choose_widths
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sampling import Progress, sample_network
from rainbow_fast.rainbow.statistics import SiteStatistics, every, take

HOLDOUT = 0.1
CHUNK_NUMBERS = 2**21  # numbers of the largest map of the reference in one chunk of samples
DTYPES = (torch.float32, torch.float64)


def fit(
    reference: nn.Module,
    data: object,
    *,
    holdout: object = None,
    max_samples: int = 400_000,
    progress: Progress | None = None,
) -> RainbowModel:
    """Fit a rainbow model to a trained network: find its sites, and their moments on the alignment data.

    Args:
        reference: an nn.Sequential, nested as you like, of the modules that `rainbow_fast.networks.trace` understands,
            with float32 or float64 parameters. It is copied; the copy is in eval mode.
        data: a tensor, ``(x, y)``, a DataLoader, or any re-iterable of batches, on which networks are aligned. It is
            held in memory, on the device of the reference; a tensor is not copied. Labels y (N,) int64 serve accuracies
            and refit classifiers.
        holdout: what errors and accuracies are also measured on: data of its own, or the share of `data`, from its end,
            that is left out of the alignment; a tenth by default, 0 for none.
        max_samples: of the moments of a site: where images times positions are more, every t-th is taken, t odd and
            coprime with the positions of a map.
        progress: called as ``progress(done, total, what)``.

    Returns:
        `RainbowModel`, from which networks are sampled.

    Raises:
        TypeError, ValueError: a reference or data that cannot be used, activations that are not finite: the message
            names the argument, the module or the site.

    Warns:
        UserWarning: fewer samples at a site than twice its channels: the alignment over-fits.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), section 2.
    """
    cut = trace(reference)
    device, dtype = _check_reference(reference, cut)
    if not isinstance(max_samples, int) or max_samples < 1:
        raise ValueError(f"max_samples={max_samples!r}: wanted an int, at least 1")
    if isinstance(holdout, int | float) and not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout}: wanted a share of the data, 0 <= holdout < 1, or data")
    x, y = _gather(data, "data", device, dtype)
    if holdout is None or isinstance(holdout, int | float):
        kept = len(x) - int(len(x) * (HOLDOUT if holdout is None else holdout))
        (x, x_held), (y, y_held) = (x[:kept], x[kept:]), (None, None) if y is None else (y[:kept], y[kept:])
    else:
        x_held, y_held = _gather(holdout, "holdout", device, dtype)
        if x_held.shape[1:] != x.shape[1:]:
            came, wanted = tuple(x_held.shape[1:]), tuple(x.shape[1:])
            raise ValueError(f"holdout: samples of shape {came}, wanted {wanted} as in data")
    kept_reference = copy.deepcopy(reference).eval()
    cut = trace(kept_reference)
    with torch.no_grad():
        shapes = _shapes(cut, x[:1])
        largest = max(math.prod(shape) for pair in shapes for shape in pair)
        chunk = max(CHUNK_NUMBERS // max(largest, math.prod(x.shape[1:])), 1)
        align, held = Data(list(x.split(chunk)), y), Data(list(x_held.split(chunk)) if len(x_held) else [], y_held)
        statistics = _statistics(cut, shapes, align, max_samples, progress)
    return RainbowModel(kept_reference, cut, statistics, align, held, max_samples)


def sample(
    reference: nn.Module,
    data: object,
    *,
    holdout: object = None,
    max_samples: int = 400_000,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[RainbowNetwork, Report]:
    """`fit` and `RainbowModel.sample` in one: ``network, report = rainbow_fast.sample(reference, data, factor=4)``.

    `options` are those of `RainbowModel.sample`.
    """
    model = fit(reference, data, holdout=holdout, max_samples=max_samples)
    return model.sample(progress=progress, **options)


class RainbowModel:
    """A trained network with the moments of its sites: what `fit` returns and networks are sampled from.

    Attributes:
        reference: a copy of the trained network, in eval mode.
        sites: a `SiteStatistics` each, in order of execution.
    """

    def __init__(
        self,
        reference: nn.Module,
        trace: Trace,
        sites: tuple[SiteStatistics, ...],
        align: Data,
        held: Data,
        max_samples: int,
    ) -> None:
        self.reference, self.sites = reference, sites
        self._trace, self._align, self._held, self._max_samples = trace, align, held, max_samples

    def sample(
        self,
        *,
        width: Widths | None = None,
        factor: float | None = None,
        rank: Widths | None = None,
        energy: float | None = None,
        sites: Sequence[str] | None = None,
        seed: int = 0,
        network: int = 0,
        method: str = "paper",
        law: str | None = None,
        h: float | None = None,
        mean_row: bool | None = None,
        recalibrate: bool | None = None,
        center: bool | None = None,
        offset: bool | None = None,
        scale: str | None = None,
        alignment: str | None = None,
        ridge: float | None = None,
        classifier: str | None = None,
        align: str = "channels",
        accuracy_profile: bool = False,
        progress: Progress | None = None,
    ) -> tuple[RainbowNetwork, Report]:
        r"""Sample one network: at every site, n neurons that are random combinations of the reference's d, aligned.

            phih = s A sigma(G_eff zh) + c,    A = polar(E[phi phi'^T])

        zh is what the reference's own layers make of the phih before, so everything else of the network stays as it is.

        Args:
            width: neurons of each site: an int, or a dict by site, in which others keep the reference's width.
            factor: multiplies the reference's widths; 1 by default. One of `width` and `factor`.
            rank: combine the leading r directions of z only; an int (at most d) or a dict by site. None uses z itself.
            energy: the least rank that holds this share of the variance. One of `rank` and `energy`.
            sites: names of those to sample; all but output activations by default.
            seed, network: address of the random numbers; networks of one seed are independent. ``0 <= seed < 2^63``,
                ``0 <= network < 2^20``; the stream of a site is ``network << 12 | site``.
            method: preset of the parts below: ``"paper"`` (Gaussian rows, uncentred orthogonal alignment, sqrt(d/n)),
                ``"calibrated"`` (orthogonal alignment with means, variances and scales set right), or ``"regression"``
                (layerwise regression on random features, the upper reference, not a rainbow network).
            law, h, mean_row, recalibrate, center, offset, scale, alignment, ridge: see `rainbow.parts.Parts`; None
                leaves the preset's.
            classifier: None keeps the trained one, which sees phih. ``"refit"`` fits one to the wide features phi' of
                the last site by ridge regression (it holds all of them, N x n, meanwhile), ``"refit_aligned"`` to phih.
            align: ``"channels"``, positions being samples; ``"flattened"``: a site that feeds a Flatten is aligned on
                all its features (d p, n p) at once.
            accuracy_profile: also measure the held-out accuracy with sites 1..j sampled (quadratic in depth).
            progress: called as ``progress(done, total, what)``, several times a site.

        Returns:
            The network, and the report.

        Raises:
            ValueError: an option that is unknown, out of range or contradicts another, or labels that are missing:
                before anything is computed. Activations that are not finite or vanish: the message names the site.

        Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 2 and equations 12 to 15.
        """
        parts = resolve(
            method,
            law=law,
            h=h,
            mean_row=mean_row,
            recalibrate=recalibrate,
            center=center,
            offset=offset,
            scale=scale,
            alignment=alignment,
            ridge=ridge,
        )
        chosen = choose_sites(self.sites, sites)
        for name, value, bits in (("seed", seed, 63), ("network", network, NETWORK_BITS)):
            if not isinstance(value, int) or not 0 <= value < 2**bits:
                raise ValueError(f"{name}={value!r}: wanted an int, 0 <= {name} < 2^{bits}")
        plan = Plan(
            method,
            parts,
            choose_widths(chosen, width, factor, parts.law),
            choose_directions(chosen, rank, energy, centred=parts.mean_row),
            seed,
            network,
            align,
            classifier,
            accuracy_profile,
        )
        self._check(plan, chosen)
        return sample_network(
            self.reference,
            self._trace,
            self.sites,
            plan,
            self._align,
            self._held,
            max_samples=self._max_samples,
            progress=progress,
        )

    def _check(self, plan: Plan, chosen: list[SiteStatistics]) -> None:
        if plan.align not in ("channels", "flattened"):
            raise ValueError(f"align={plan.align!r}: wanted 'channels' or 'flattened'")
        feeding = [s for s in chosen if s.site.feeds_flatten]
        if plan.align == "flattened" and not feeding:
            raise ValueError("align='flattened': no sampled site feeds a Flatten")
        for s in feeding if plan.align == "flattened" else []:
            _warn_if_few(s.site.name, self._align.count, s.d * s.positions)
        if plan.classifier not in CLASSIFIERS:
            raise ValueError(f"classifier={plan.classifier!r}: wanted None, 'refit' or 'refit_aligned'")
        if plan.classifier is not None:
            tail_layers(self.reference, self._trace)
            if self._align.labels is None:
                raise ValueError(f"classifier={plan.classifier!r}: data has no labels, wanted batches (x, y)")
        if plan.classifier == "refit" and self.sites[-1].site.name not in plan.widths:
            raise ValueError(
                f"classifier='refit': the last site {self.sites[-1].site.name!r} is not sampled; wanted 'refit_aligned'"
            )
        if plan.accuracy_profile and (self._held.labels is None or not self._held.count):
            raise ValueError("accuracy_profile=True: wanted held-out data with labels, batches (x, y)")


def _check_reference(reference: nn.Module, cut: Trace) -> tuple[torch.device, torch.dtype]:
    if not cut.sites:
        raise ValueError("reference: no site, wanted at least one pointwise non-linearity")
    parameters = dict(reference.named_parameters())
    if not parameters:
        raise ValueError("reference: no parameters, wanted a network with linear layers")
    first = next(iter(parameters.values()))
    for name, p in parameters.items():
        if p.dtype not in DTYPES or p.dtype != first.dtype or p.device != first.device:
            raise TypeError(
                f"reference: parameter {name!r} is {p.dtype} on {p.device}: wanted float32 or float64, and one dtype "
                "and device for all"
            )
    return first.device, first.dtype


def _gather(data: object, name: str, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """All of a data set, as (x, y) on the device of the reference; y is None if there are no class labels."""
    try:
        parts = list(batches(data, batch_size=2**62))
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("data:", f"{name}:", 1)) from None
    for x, _ in parts:
        if x.shape[1:] != parts[0][0].shape[1:]:
            shapes = tuple(parts[0][0].shape[1:]), tuple(x.shape[1:])
            raise ValueError(f"{name}: samples of shapes {shapes[0]} and {shapes[1]}, wanted one shape")
    xs = [x.to(device, dtype) for x, _ in parts]
    ys = [y.to(device) for _, y in parts if y is not None]
    x = xs[0] if len(xs) == 1 else torch.cat(xs)
    if not ys or any(y.dtype != torch.int64 or y.dim() != 1 for y in ys):
        return x, None
    return x, torch.cat(ys)


def _shapes(cut: Trace, x: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of z and phi of one sample, site by site."""
    found = []
    for site, segment in zip(cut.sites, cut.segments, strict=False):
        z = segment(x)
        if z.dim() > 2 and site.axis is None:
            raise ValueError(
                f"site {site.name!r}: the channel axis of z, of shape {tuple(z.shape)}, is ambiguous: wanted (N, d), "
                "or a convolution or linear layer before it"
            )
        x = site.reference(z)
        found.append((tuple(z.shape[1:]), tuple(x.shape[1:])))
    return found


def _statistics(
    cut: Trace,
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]],
    data: Data,
    max_samples: int,
    progress: Progress | None,
) -> tuple[SiteStatistics, ...]:
    found = []
    for site, (z_shape, phi_shape) in zip(cut.sites, shapes, strict=True):
        d = z_shape[-1 if site.axis == -1 else 0]
        found.append(SiteStatistics(site, d, z_shape, phi_shape, CrossCovariance(site.name)))
        if not site.output:
            _warn_if_few(site.name, data.count * found[-1].positions, d)
    before = 0
    for number, x in enumerate(data.chunks, start=1):
        samples = len(x)
        for s, segment in zip(found, cut.segments, strict=False):
            z = segment(x)
            per_sample = math.prod(s.z_shape) // s.d
            step = every(data.count * per_sample, max_samples, per_sample)
            s.z.update(take(channels_first(z, s.site.axis), before * per_sample, step))
            x = s.site.reference(z)
        before += samples
        if progress is not None:
            progress(number, len(data.chunks), "statistics of the reference")
    for s in found:
        if (channel := s.z.x.not_finite()) is not None:
            raise ValueError(f"site {s.site.name!r}: the reference's z is not finite, first in channel {channel}")
    return tuple(found)


def _warn_if_few(site: str, samples: int, d: int) -> None:
    if samples < 2 * d:
        warnings.warn(
            f"site {site!r}: {samples} samples for {d} channels: an alignment over-fits with fewer than 2 d = {2 * d}",
            UserWarning,
            stacklevel=4,
        )
