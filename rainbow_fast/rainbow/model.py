# SPDX-License-Identifier: BSD-3-Clause
"""`fit`, `sample` and `plan`: from a trained network and data to sampled networks of any width, and their cost."""

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
from rainbow_fast.rainbow.planning.room import check_room
from rainbow_fast.rainbow.prepare import Prepared, prepare
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sampling.run import sample_networks
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tracing.own_inputs import with_own_inputs


class RainbowModel:
    """A fitted model: a trained network, the moments of its sites, and the data that networks are aligned on.

    `fit` and `load_model` make it. Its constructor is not part of the public interface.

    Attributes:
        reference: a copy of the trained network, in eval mode. With several trained networks, a network that gives the
            mean of their outputs.
        sites: a `SiteStatistics` for each site, in order of execution.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.reference, self.sites = with_own_inputs(prepared.trace.reference), prepared.sites

    @accepts(SampleOptions, Limits)
    def sample(
        self, *options: Options, progress: Progress | bool | None = None, **words: Any
    ) -> tuple[RainbowNetwork, Report]:
        r"""Sample one network.

        Each sampled site gets n neurons. They are random combinations of the d neurons of the reference, and are
        aligned to it:

            phih = s A phi' + c,    phi' = sigma(G_eff zh),    A = polar(E[phi phi'^T])

        The reference's own layers compute zh from the phih of the site before. Everything else in the network stays as
        it is.

        Args:
            options: `SampleOptions` and `Limits`, whole; or each of their fields by its name, as listed below.
            progress: called as ``progress(done, total, what)``, several times a site; or True, which shows a bar.

        Returns:
            The network and its report.

        Raises:
            TypeError: an option does not exist. The message suggests the nearest name.
            ValueError: an option is out of range or contradicts another, labels are missing, or the matrices of a site
                need more memory than the machine has (`plan` says how much a run needs); raised before anything is
                computed. Activations are not finite or all zero; the message names the site. `resume_dir` holds other
                files, or a run of another reference, data, options, number of threads, instruction set or version; the
                message names what differs.
            RuntimeError: called on a few samples, the network is not deterministic, or it differs from what the run
                computed by more than 1e-5 of the largest output (8 units of a half precision). The message names the
                first site that differs.

        Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 2 and equations 12 to 15.
        """
        chosen, limits = collect(options, words, SampleOptions, Limits)
        check_room(self.prepared, [chosen])
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
        """Sample several networks in one pass of the reference. At each site they are sampled one after the other.

        Each network is the same, to the bit, as the one that `sample` gives.

        Args:
            networks: the options of each network: `SampleOptions`, or a dict of its fields.
            options: `Limits` for all networks together, whole or by its fields.
            progress: called as ``progress(done, total, what)``; or True, which shows a bar.

        Returns:
            Each network with its report, in the order of `networks`.

        Raises:
            ValueError: `networks` is empty; and as `sample`. A message about one network begins with its place in
                `networks`.
        """
        if not networks:
            raise ValueError("networks: wanted the options of at least one network, got none")
        (limits,) = collect(options, words, Limits)
        chosen = []
        for number, one in enumerate(networks):
            if not isinstance(one, SampleOptions):
                one = SampleOptions.from_dict(one, where=f"networks[{number}]: ")
            chosen.append(one)
        check_room(self.prepared, chosen)
        specs = [NetworkSpec.of(one, self.prepared) for one in chosen]
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
        """The cost of `sample` with the same options: flops, bytes, peak memory, and a predicted time. Samples nothing.

        The predicted time assumes that activations are stored in memory. The peak memory is that of the storage that
        the options lead to.

        Args:
            options: as in `sample`.
            images: number of images to align on; default: as many as the model was fitted on.
            machine: the rates to predict with; None measures those of this machine, in about half a second.

        Raises:
            ValueError, TypeError: as `sample` before anything is computed; or `images` is not an int of at least 1, or
                `machine` is not a `Machine`.
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
    """Fit a rainbow model to a trained network: find its sites, and measure their moments on the data.

    Args:
        reference: a trained network: any nn.Module with float32, float64, bfloat16 or float16
            parameters. Sampled sites of half precision are computed in float32. The network is copied, and the copy is
            put into eval mode. Its output must depend on each sample alone, and be the same in every call.
            `rainbow_fast.sites` lists what would be sampled; see `rainbow_fast.tracing.trace.trace` for networks that
            torch.fx cannot trace.
            Or a list of K trained networks of the same architecture, which must be chains without skip connections.
            They are rotated onto their mean. The new neurons are combinations of the neurons of all K,
            ``w'_i ~ N(0, sum_k A_k W_k^T W_k A_k^T / (K d))``, and outputs are means over the K networks.
        data: the data that networks are aligned on: a tensor, ``(x, y)``, a DataLoader, one of its batches, or any
            re-iterable of batches, which is read once. A tensor is not copied, and may be memory-mapped from a file.
            Several inputs x are a dict by the names of parameters of `forward`, or a tuple; a dict may hold the labels
            as "labels" or "label". An input named `...attention_mask` (1 where a position counts) or
            `...padding_mask` (true where it does not) leaves padded positions out of all moments and errors.
            Integers stay integers if the network does not run on them as numbers (token ids). Otherwise uint8 values
            are taken as pixels and divided by 255; all other numbers are converted to the dtype of the network. Labels
            y are needed only for accuracies and refit classifiers: any integer dtype, (N,) with values 0 to K - 1 for a
            network with outputs (N, K); or (N, *positions) for outputs (N, K, *positions) or (N, *positions, K), where
            -100 does not count; or 0 and 1, of any dtype, for one logit. With `metric`, they may be any tensor.
        options: `FitOptions` and `DataLimits`, whole; or each of their fields by its name, as listed below.
        progress: called as ``progress(done, total, what)``; or True, which shows a bar.

    Returns:
        `RainbowModel`, which networks are sampled from.

    Raises:
        TypeError, ValueError: the reference or the data cannot be used, or activations are not finite; the message
            names the argument, the module or the site. Labels cannot be compared with the outputs; pass x alone, or
            `metric`.
            The reference gives other outputs when it is called twice (compared to the bit), or when it is traced or
            given a single sample (compared to 1e-5 of the largest output, 8 units of a half precision, beyond
            rounding). This is checked once, on the first samples: at most `batch_size`, and at most a quarter of the
            data or 16 samples, whichever is more. The message names the first module and function that differs. An
            option does not exist; the message suggests the nearest name.

    Warns:
        UserWarning: a site has fewer samples than twice its channels, so that the alignment over-fits; or two layers
            have random features with the same seed and stream (`rainbow_fast.nn.RandomFeatures`).

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

    The network is the same to the bit. The reference runs over the data only once, unless `rank`, `explained_variance`
    or `resume_dir` is given: these need the moments that `fit` measures first.

    Args:
        reference, data: as in `fit`.
        options: `FitOptions`, `SampleOptions` and `Limits`, whole; or each of their fields by its name, listed below.
        progress: called as ``progress(done, total, what)``; or True, which shows a bar.
    """
    fit_options, chosen, limits = collect(options, words, FitOptions, SampleOptions, Limits)
    with reported(progress) as report:
        prepared = _prepared(reference, data, fit_options, limits, report)
        check_room(prepared, [chosen])
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
    **words: Any,
) -> Cost:
    r"""The cost of `rainbow_fast.sample` with the same arguments: flops, bytes, peak memory, and a predicted time.

    Every step of `fit` and `RainbowModel.sample` is counted from shapes. Only the labels and the first sample of the
    data are read, and the reference runs on that sample alone.

    For a site of d channels, n neurons and rank r, and N images of p positions, S of which are used as samples, the
    flops are::

        moments      2 S n (r + d)      alignment    12 s^2 l + 24 s^3, s and l the short and the long side of M (d, n)
        projection   2 N p n (r + d)    regression   S n^2 and 2 N p n r more in moments; n^3 / 3 + 2 d n^2 in solve

    With polar and S + 8 <= s / 4 the alignment takes ``6 d n S'``, S' = S + 8, and the same of a matrix (S', n).

    The predicted time is the sum of ``max(flops / rate + features / rate + pooled / rate, bytes / rate)`` over all
    `Work`.

    Args:
        reference, data: as in `fit`.
        options: as in `sample`. `images` may be larger than the number of samples in `data`; the plan is then for that
            many samples of the same shape. If z of a site is not written by a single bias-free layer,
            `explained_variance` needs moments: call `fit` first, then `RainbowModel.plan`.
        machine: the rates to predict with; None measures those of this machine, in about half a second.

    Returns:
        `Cost`; `print` gives a table.

    Raises:
        TypeError, ValueError: as `fit` and `RainbowModel.sample`; or `images` is not an int of at least 1.

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
    """The checked arguments, without moments yet. Several references are rotated onto their mean."""
    prepared = prepare(reference, data, options, limits)
    if prepared.trace.references > 1:
        fit_rotations(prepared, options.procrustes_iterations, progress)
    return prepared


@without_autocast()
def _fit(prepared: Prepared, progress: Progress | None) -> None:
    fit_moments(prepared, progress)


def needs_fit(options: SampleOptions, limits: Limits) -> bool:
    """Whether `sample` with these options needs the moments of `fit`: for directions, or to check a resumed run."""
    return not (options.rank is options.explained_variance is limits.resume_dir is None)


def _planned(
    prepared: Prepared, options: SampleOptions, limits: Limits, machine: Machine | None, *, fitted: bool
) -> Cost:
    """The cost of one network; if not `fitted`, with the work of `fit`."""
    if machine is not None and not isinstance(machine, Machine):
        raise TypeError(f"machine: wanted a Machine or None, got {type(machine).__name__}")
    spec = NetworkSpec.of(options, prepared, only_shapes=True)
    if machine is None:
        activation, precision = prepared.sites[0].site.activation, spec.options.precision
        machine = Machine.measure(prepared.align.dtype, activation, precision=precision)
    return estimate(prepared, spec, limits, machine=machine, fitted=fitted)
