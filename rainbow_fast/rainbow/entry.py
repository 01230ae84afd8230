# SPDX-License-Identifier: BSD-3-Clause
"""fit, sample and plan: a trained network and its data in, networks of any width out, and what that takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from rainbow_fast.arguments import integer
from rainbow_fast.ops.registration import without_autocast
from rainbow_fast.rainbow.alignment.procrustes import fit_rotations
from rainbow_fast.rainbow.fitting import Progress
from rainbow_fast.rainbow.model import RainbowModel
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork
from rainbow_fast.rainbow.planning.cost import Cost
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.prepare import prepare
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sampling import storage as storing
from rainbow_fast.tracing.joined import Joined


def fit(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    *,
    holdout: object = None,
    max_samples: int = 400_000,
    pointwise: Iterable[type[nn.Module]] = (),
    iterations: int = 2,
    memory_budget: int | None = None,
    scratch: str | None = None,
    progress: Progress | None = None,
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
        holdout: what errors and accuracies are also measured on: data of its own, or the share of `data`, from its end,
            that is left out of the alignment; a tenth by default, 0 for none.
        max_samples: of the moments of a site: where images times positions are more, every t-th is taken, t odd and
            coprime with the positions of a map.
        pointwise: kinds of modules of one's own that treat every number alike, and so can be sampled.
        iterations: of the generalised Procrustes alignment of several references; 1 rotates them onto the first.
        memory_budget: bytes of data that is not a tensor already; beyond, it is put into a file in `scratch`, an
            existing folder, that of the system for temporary files by default. None: no limit.
        progress: called as ``progress(done, total, what)``.

    Returns:
        `RainbowModel`, from which networks are sampled.

    Raises:
        TypeError, ValueError: a reference or data that cannot be used, activations that are not finite: the message
            names the argument, the module or the site. Labels that are no classes of the network's outputs: pass x
            alone. A reference that is not the same function when it is called twice (to the bit), traced, or given one
            sample alone (to 1e-5 of the largest output, 8 units of a half precision, beyond rounding): compared once,
            on samples of the first chunk of the data; the message names the first module and function that differs.

    Warns:
        UserWarning: fewer samples at a site than twice its channels: the alignment over-fits.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), section 2; several references: equation 17.
    """
    given = reference, data, holdout, max_samples, pointwise
    model = _unfitted(*given, iterations, memory_budget=memory_budget, scratch=scratch, progress=progress)
    model.fit_moments(progress)
    return model


def sample(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    *,
    holdout: object = None,
    max_samples: int = 400_000,
    pointwise: Iterable[type[nn.Module]] = (),
    iterations: int = 2,
    memory_budget: int | None = None,
    scratch: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[RainbowNetwork, Report]:
    """`fit` and `RainbowModel.sample` in one: ``network, report = rainbow_fast.sample(reference, data, factor=4)``.

    `options` are those of `RainbowModel.sample`. The network is the same to the bit, in one pass of the reference where
    they ask for no rank, whose directions `fit` has to find first.
    """
    given = reference, data, holdout, max_samples, pointwise
    limits: dict[str, Any] = {"memory_budget": memory_budget, "scratch": scratch}
    model = _unfitted(*given, iterations, **limits, progress=progress)
    if _needs_fit(options):
        model.fit_moments(progress)
    return model.sample(progress=progress, **limits, **options)


def plan(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    *,
    images: int | None = None,
    holdout: object = None,
    max_samples: int = 400_000,
    pointwise: Iterable[type[nn.Module]] = (),
    iterations: int = 2,
    machine: Machine | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Cost:
    r"""What `rainbow_fast.sample` with the same arguments takes: flops, bytes, peak memory, and a predicted time.

    Every step of `fit` and `RainbowModel.sample` is counted from shapes; of the data nothing else is read but the first
    sample, on which the reference runs, and the labels. The flops of
    a site of d channels, n neurons and rank r, over N images of p positions, S of all N p positions being taken::

        moments      2 S n (r + d)      alignment    12 s^2 l + 24 s^3, s and l the short and the long side of M (d, n)
        projection   2 N p n (r + d)    regression   S n^2 and 2 N p n r more in moments; n^3 / 3 + 2 d n^2 in solve

    and ``seconds = sum of max(flops / rate + features / rate + pooled / rate, bytes / rate)`` over all `Work`.

    Args:
        reference, data, holdout, max_samples, pointwise, iterations: as in `fit`.
        images: as if `data` had so many, its first image being the example: no data are needed then.
        machine: rates; None measures those of this machine, in about half a second.
        progress: not called.
        options: those of `RainbowModel.sample`. `energy` needs the moments of sites that have not one bias-free writer:
            `fit` first, then `RainbowModel.plan`.

    Returns:
        `Cost`; `print` gives a table.

    Raises:
        TypeError, ValueError: as `fit` and `RainbowModel.sample`; `images` that is no int of at least 1.

    Warns:
        UserWarning: as `fit`.
    """
    model = _unfitted(reference, data, holdout, max_samples, pointwise, None, images=images)
    return model._estimate(model._align, machine, fitted=not _needs_fit(options), **options)


@without_autocast()
def _unfitted(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    holdout: object,
    max_samples: int,
    pointwise: Iterable[type[nn.Module]],
    iterations: int | None,
    *,
    images: int | None = None,
    memory_budget: int | None = None,
    scratch: str | None = None,
    progress: Progress | None = None,
) -> RainbowModel:
    """A model without moments; without `iterations`, without the rotations of several references."""
    storing.check_budget(memory_budget, scratch)
    max_samples = integer("max_samples", max_samples, 1)
    iterations = None if iterations is None else integer("iterations", iterations, 1)
    limits: dict[str, Any] = {"memory_budget": memory_budget, "scratch": scratch}
    limits["only_shapes"] = iterations is None
    cut, sites, align, held = prepare(reference, data, holdout, max_samples, pointwise, images, **limits)
    if isinstance(cut, Joined) and iterations is not None:
        fit_rotations(cut, sites, align, max_samples=max_samples, iterations=iterations, progress=progress)
    return RainbowModel(cut, sites, align, held, max_samples)


def _needs_fit(options: Mapping[str, Any]) -> bool:
    """Whether a sample with these options starts from moments: directions, and what a resumed run is compared by."""
    return any(options.get(name) is not None for name in ("rank", "energy", "resume"))
