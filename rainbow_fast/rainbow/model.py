# SPDX-License-Identifier: BSD-3-Clause
"""fit, sample and plan: a trained network and its data in, networks of any width out, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from rainbow_fast.fields import Options, accepts, collect
from rainbow_fast.ops.registration import without_autocast
from rainbow_fast.progress import Progress, reported
from rainbow_fast.rainbow.fitting import fit_moments, fit_rotations
from rainbow_fast.rainbow.holdout import repeat
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork
from rainbow_fast.rainbow.options import DataLimits, FitOptions, Limits, SampleOptions
from rainbow_fast.rainbow.planning.cost import Cost
from rainbow_fast.rainbow.planning.estimate import estimate
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.prepare import Prepared, prepare
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sampling.run import sample_networks
from rainbow_fast.rainbow.spec import NetworkSpec


class RainbowModel:
    """A fitted model: a trained network, the moments of its sites, and the data that samples are aligned on.

    `fit` and `load_model` make it. Its constructor is not part of the public interface.

    Attributes:
        reference: a copy of the trained network, in eval mode; if there were several, the mean of their outputs.
        sites: a `SiteStatistics` for each site, in order of execution.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.reference, self.sites = prepared.trace.reference, prepared.sites

    @accepts(SampleOptions, Limits)
    def sample(
        self, *options: Options, progress: Progress | bool | None = None, **words: Any
    ) -> tuple[RainbowNetwork, Report]:
        r"""Sample one network: at every site, n neurons that are random combinations of the reference's d, aligned.

            phih = s A sigma(G_eff zh) + c,    A = polar(E[phi phi'^T])

        zh is what the reference's own layers make of the phih before, so everything else of the network stays as it is.

        Args:
            options: `SampleOptions` and `Limits`, whole; or each of their fields by its name, as listed below.
            progress: called as ``progress(done, total, what)``, several times a site; or True, which shows a bar.

        Returns:
            The network, and the report.

        Raises:
            TypeError: an option that does not exist: the message has the nearest one.
            ValueError: an option that is out of range or contradicts another, or labels that are missing: before
                anything is computed. Activations that are not finite or vanish: the message names the site. A folder to
                resume from that holds something else, or a run of another reference, data, options, number of threads,
                instruction set or version: the message names what differs.
            RuntimeError: the network, called on a few samples, is no function, or not the one that the run computed (to
                1e-5 of the largest output, 8 units of a half precision): the message names the first site.

        Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 2 and equations 12 to 15.
        """
        chosen, limits = collect(options, words, SampleOptions, Limits)
        with without_autocast(), reported(progress) as report:
            return sample_networks(self.prepared, [NetworkSpec.of(chosen, self.prepared)], limits, report)[0]

    @accepts(Limits)
    def sample_many(
        self,
        networks: Sequence[SampleOptions | Mapping[str, Any]],
        *options: Options,
        progress: Progress | bool | None = None,
        **words: Any,
    ) -> list[tuple[RainbowNetwork, Report]]:
        """Sample several networks in one pass of the reference: at each site, one after the other. Each is the network
        that `sample` gives, to the bit.

        Args:
            networks: what each network is sampled with: `SampleOptions`, or a dict of their fields.
            options: `Limits` of all networks together, whole or by its fields.
            progress: called as ``progress(done, total, what)``; or True, which shows a bar.

        Returns:
            Each network with its report.

        Raises:
            ValueError: no network; and as `sample`. A message about one network begins with its place in `networks`.
        """
        if not networks:
            raise ValueError("networks: wanted the options of at least one network, got none")
        (limits,) = collect(options, words, Limits)
        specs = []
        for number, one in enumerate(networks):
            if not isinstance(one, SampleOptions):
                one = SampleOptions.from_dict(one, where=f"networks[{number}]: ")
            specs.append(NetworkSpec.of(one, self.prepared))
        with without_autocast(), reported(progress) as report:
            return sample_networks(self.prepared, specs, limits, report)

    @accepts(SampleOptions, Limits)
    def plan(
        self,
        *options: Options,
        images: int | None = None,
        machine: Machine | None = None,
        **words: Any,
    ) -> Cost:
        """What `sample` with the same options takes: flops, bytes, peak memory, and a predicted time. Samples nothing.

        Time is that of activations which wait in memory, the peak that of where they do.

        Args:
            options: as in `sample`.
            images: to align on, in place of those that the model was fitted on.
            machine: rates; None measures those of this machine, in about half a second.

        Raises:
            ValueError, TypeError: as `sample`, before anything is computed; `images` that is no int of at least 1, a
                `machine` that is none.
        """
        chosen, limits = collect(options, words, SampleOptions, Limits)
        prepared = self.prepared
        if images is not None:
            prepared = replace(prepared, align=replace(prepared.align, x=repeat(prepared.align.x, images), index=None))
        return _planned(prepared, chosen, limits, machine, fitted=True)


@accepts(FitOptions, DataLimits)
def fit(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    *options: Options,
    progress: Progress | bool | None = None,
    **words: Any,
) -> RainbowModel:
    """Fit a rainbow model to a trained network: find its sites, and their moments on the alignment data.

    Args:
        reference: any nn.Module of one input, with float32, float64, bfloat16 or float16 parameters (computed on in
            float32 where it is sampled). It is copied; the copy is in eval mode, and must be a function of each sample
            alone, the same at every call. `rainbow_fast.sites` lists what of it would be sampled; see
            `rainbow_fast.tracing.trace.trace` for networks that torch.fx cannot trace. Or a list of K networks of one
            architecture, chains without skips: neurons are combinations of those of all K, rotated onto their mean,
            ``w'_i ~ N(0, sum_k A_k W_k^T W_k A_k^T / (K d))``, and outputs are means over the K.
        data: a tensor, ``(x, y)``, a DataLoader, or any re-iterable of batches, read once; networks are aligned on it.
            A tensor is not copied, and may lie in a file that is mapped. x of uint8 are pixels, and are divided by 255,
            wherever they come from; all other numbers are converted to the dtype of the network. Labels y (N,) of any
            integers, 0 to K - 1 for a network of outputs (N, K), serve accuracies and refit classifiers.
        options: `FitOptions` and `DataLimits`, whole; or each of their fields by its name, as listed below.
        progress: called as ``progress(done, total, what)``; or True, which shows a bar.

    Returns:
        `RainbowModel`, from which networks are sampled.

    Raises:
        TypeError, ValueError: a reference or data that cannot be used, activations that are not finite: the message
            names the argument, the module or the site. Labels that are no classes of the network's outputs: pass x
            alone. A reference that is not the same function when it is called twice (to the bit), traced, or given one
            sample alone (to 1e-5 of the largest output, 8 units of a half precision, beyond rounding): compared once,
            on samples of the first chunk of the data; the message names the first module and function that differs.
            An option that does not exist: the message has the nearest one.

    Warns:
        UserWarning: fewer samples at a site than twice its channels: the alignment over-fits.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), section 2; several references: equation 17.
    """
    fit_options, limits = collect(options, words, FitOptions, DataLimits)
    with reported(progress) as report:
        prepared = _prepared(reference, data, fit_options, limits, report)
        _fit(prepared, report)
    return RainbowModel(prepared)


@accepts(FitOptions, SampleOptions, Limits)
def sample(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    *options: Options,
    progress: Progress | bool | None = None,
    **words: Any,
) -> tuple[RainbowNetwork, Report]:
    """`fit` and `RainbowModel.sample` in one: ``network, report = rainbow_fast.sample(reference, data, factor=4)``.

    The network is the same to the bit, in one pass of the reference where the options ask for no rank, whose directions
    `fit` has to find first.

    Args:
        reference, data: as in `fit`.
        options: `FitOptions`, `SampleOptions` and `Limits`, whole; or each of their fields by its name, listed below.
        progress: called as ``progress(done, total, what)``; or True, which shows a bar.
    """
    fit_options, chosen, limits = collect(options, words, FitOptions, SampleOptions, Limits)
    with reported(progress) as report:
        prepared = _prepared(reference, data, fit_options, limits, report)
        if needs_fit(chosen, limits):
            _fit(prepared, report)
        with without_autocast():
            return sample_networks(prepared, [NetworkSpec.of(chosen, prepared)], limits, report)[0]


@accepts(FitOptions, SampleOptions, Limits)
def plan(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    *options: Options,
    machine: Machine | None = None,
    progress: Progress | bool | None = None,
    **words: Any,
) -> Cost:
    r"""What `rainbow_fast.sample` with the same arguments takes: flops, bytes, peak memory, and a predicted time.

    Every step of `fit` and `RainbowModel.sample` is counted from shapes; of the data nothing else is read but the first
    sample, on which the reference runs, and the labels. The flops of
    a site of d channels, n neurons and rank r, over N images of p positions, S of all N p positions being taken::

        moments      2 S n (r + d)      alignment    12 s^2 l + 24 s^3, s and l the short and the long side of M (d, n)
        projection   2 N p n (r + d)    regression   S n^2 and 2 N p n r more in moments; n^3 / 3 + 2 d n^2 in solve

    and ``seconds = sum of max(flops / rate + features / rate + pooled / rate, bytes / rate)`` over all `Work`.

    Args:
        reference, data: as in `fit`.
        options: as in `sample`. `images` may be more than `data` has: the plan is then for so many samples like the
            first one. At a site that is not written by one layer without a bias, `explained_variance` needs moments:
            call `fit` first, then `RainbowModel.plan`.
        machine: rates; None measures those of this machine, in about half a second.

    Returns:
        `Cost`; `print` gives a table.

    Raises:
        TypeError, ValueError: as `fit` and `RainbowModel.sample`; `images` that is no int of at least 1.

    Warns:
        UserWarning: as `fit`.
    """
    fit_options, chosen, limits = collect(options, words, FitOptions, SampleOptions, Limits)
    with without_autocast():
        prepared = prepare(reference, data, fit_options, limits, only_shapes=True)
    return _planned(prepared, chosen, limits, machine, fitted=not needs_fit(chosen, limits))


@without_autocast()
def _prepared(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    options: FitOptions,
    limits: DataLimits,
    progress: Progress | None,
) -> Prepared:
    """Without moments yet; several references are rotated onto their mean."""
    prepared = prepare(reference, data, options, limits)
    if prepared.trace.references > 1:
        fit_rotations(prepared, options.procrustes_iterations, progress)
    return prepared


@without_autocast()
def _fit(prepared: Prepared, progress: Progress | None) -> None:
    fit_moments(prepared, progress)


def needs_fit(options: SampleOptions, limits: Limits) -> bool:
    """Whether a sample with these options starts from moments: directions, and what a resumed run is compared by."""
    return not (options.rank is options.explained_variance is limits.resume_dir is None)


def _planned(
    prepared: Prepared, options: SampleOptions, limits: Limits, machine: Machine | None, *, fitted: bool
) -> Cost:
    """The cost of one network; not `fitted`: with the work of `fit`."""
    if machine is not None and not isinstance(machine, Machine):
        raise TypeError(f"machine: wanted a Machine or None, got {type(machine).__name__}")
    spec = NetworkSpec.of(options, prepared, only_shapes=True)
    if machine is None:
        machine = Machine.measure(prepared.align.dtype, prepared.sites[0].site.activation)
    return estimate(prepared, spec, limits, machine=machine, fitted=fitted)
