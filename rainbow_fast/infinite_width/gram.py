# SPDX-License-Identifier: BSD-3-Clause
"""The Gram matrices of the layers of a network of infinite width with white weights, layer by layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rainbow_fast.arguments import between, flag, integer, tensor
from rainbow_fast.infinite_width import hermite
from rainbow_fast.infinite_width.expectations import expectations
from rainbow_fast.infinite_width.gaussian_pairs import Pairs, angles_of
from rainbow_fast.infinite_width.kernels import PAIRS, power

_variance = between(0, math.inf, "a finite number of at least 0", open_high=True)


@dataclass(frozen=True)
class Gram:
    r"""Mean products of the activations of N inputs and N' inputs, layer by layer: ``K = <h(x), h(x')> / channels``.

    The weights of every layer are white: C = I. This recursion is the kernel of an untrained network (NNGP). The
    kernel of learned covariances is that of the sites of a sampled network of infinite width, see
    `rainbow_fast.infinite_width.expected_kernel`. Example: a CNN with two convolutions and a linear classifier::

        K = Gram.of(images)
        for _ in range(2):
            K = K.convolution(5, stride=2).activation("relu")
        kernel = K.flatten().values                         # (N, N)

    Every method returns a new object. All numbers are float64 on the CPU, with an error of 1e-15 of the variances for
    each layer with a closed form, and of 1e-11 for each Hermite series. Angles are known to 1e-8, as in
    `expected_kernel_of_gram`.

    Attributes:
        values: (N, N') without positions; (N, N', \*space) for maps, at equal positions; (N, N', \*space, \*space) if
            all pairs of positions are kept.
        space: sizes of the maps; empty without positions.
        all_pairs: whether all pairs of positions are kept, which `mean` needs.
        same: whether the N' inputs are the N inputs.
        rows, columns: K of each input with itself at equal positions, (N, \*space) and (N', \*space). None if the
            inputs are the same, because `values` has these numbers; or if they are not known, after a mean.

    Source: Lee et al., "Deep neural networks as Gaussian processes" (ICLR 2018); for convolutions Novak et al.,
    "Bayesian deep convolutional networks with many channels are Gaussian processes" (ICLR 2019).
    """

    values: Tensor
    space: tuple[int, ...] = ()
    all_pairs: bool = False
    same: bool = True
    rows: Tensor | None = None
    columns: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, y: Tensor | None = None, *, all_pairs: bool = False) -> Gram:
        """The Gram matrix of inputs.

        Args:
            x: (N, d), or (N, d, *space) for maps.
            y: (N', d, *space); None (default) stands for x.
            all_pairs: whether to keep all pairs of positions; False by default. The memory is N N' p^2 numbers for
                maps of p positions, else N N' p.

        Raises:
            ValueError: x has no channels or is not finite, or y has other channels or positions.
            TypeError: x or y is not a tensor, or `all_pairs` is not a flag.
        """
        flag("all_pairs", all_pairs)
        left = _inputs("x", x)
        right = left if y is None else _inputs("y", y)
        if left.shape[1:] != right.shape[1:]:
            raise ValueError(f"y has shape {tuple(right.shape)}: wanted (N', {', '.join(map(str, left.shape[1:]))})")
        d, space = left.shape[1], tuple(left.shape[2:])
        a, b = (side.movedim(1, -1).reshape(len(side), -1, d) for side in (left, right))  # (N, positions, d)
        pairs = all_pairs and bool(space)
        values = torch.einsum("npd,mqd->nmpq" if pairs else "npd,mpd->nmp", a, b)
        values = values.view(len(a), len(b), *space, *space * pairs)
        K = cls(values / d, space, pairs, y is None)
        return K if y is None else replace(K, rows=left.square().sum(1) / d, columns=right.square().sum(1) / d)

    def linear(self, *, weight_variance: float = 1.0, bias_variance: float = 0.0) -> Gram:
        """After a linear layer of weights N(0, weight_variance / inputs) and biases N(0, bias_variance).

        Raises:
            ValueError: there are positions, or a variance is below 0 or not finite.
        """
        if self.space:
            raise ValueError(f"there are maps of {self.space}: wanted a convolution, or flatten() or mean() before")
        return self._affine(weight_variance, bias_variance)

    def convolution(
        self,
        size: int | Sequence[int],
        *,
        stride: int = 1,
        padding: int = 0,
        weight_variance: float = 1.0,
        bias_variance: float = 0.0,
    ) -> Gram:
        """After a convolution: the mean over the positions of a patch. Maps are padded with zeros.

        Args:
            size: sides of the kernel, one for all axes or one for each.
            stride, padding: as in `torch.nn.Conv2d`, for all axes.
            weight_variance: of the weights times the number of inputs, channels times positions of the kernel.
            bias_variance: of the biases.

        Raises:
            ValueError: there are no positions, the kernel is larger than the padded map, or a number is out of range.
        """
        if not self.space:
            raise ValueError("there are no positions: wanted maps (N, d, *space)")
        sides = [integer("size", size, 1)] * len(self.space) if isinstance(size, int) else list(size)
        stride, padding = integer("stride", stride, 1), integer("padding", padding)
        if len(sides) != len(self.space) or any(k > m + 2 * padding for k, m in zip(sides, self.space, strict=True)):
            raise ValueError(f"size={size}: wanted a kernel for maps of {self.space} with a padding of {padding}")

        def summed(t: Tensor, leading: int) -> Tensor:
            """The mean over patches of a tensor whose axes after the leading ones are positions, once or twice."""
            times = (t.dim() - leading) // len(sides)
            t = torch.nn.functional.pad(t, [padding] * (2 * times * len(sides)))
            total: Tensor | None = None
            for offset in itertools.product(*(range(k) for k in sides)):
                at: list[slice] = [slice(None)] * leading
                for o, k, m in list(zip(offset, sides, self.space, strict=True)) * times:
                    at.append(slice(o, o + m + 2 * padding - k + 1, stride))
                part = t[tuple(at)]
                total = part.clone() if total is None else total.add_(part)
            assert total is not None
            return total.div_(math.prod(sides))

        rows = None if self.rows is None else summed(self.rows, 1)
        columns = None if self.columns is None else summed(self.columns, 1)
        values = summed(self.values, 2)
        space = tuple(values.shape[2 : 2 + len(sides)])
        K = replace(self, values=values, space=space, rows=rows, columns=columns)
        return K._affine(weight_variance, bias_variance)

    def activation(
        self,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        *,
        negative_slope: float = 0.01,
        max_pairs: int = PAIRS,
    ) -> Gram:
        """After a pointwise activation. Arguments and errors are as in `expected_kernel`.

        Raises:
            ValueError: also if K of each input with itself is not known.
        """
        form = expectations(activation, negative_slope)
        max_pairs = integer("max_pairs", max_pairs, 1)
        left, right = self._variances()
        terms: list[Tensor] = []
        if form.centred is None:
            sizes = torch.cat([left.flatten(), right.flatten()]).sqrt()
            coefficients = hermite.coefficients(form.name, form.sigma, sizes, torch.zeros_like(sizes))
            parts = coefficients.split([left.numel(), right.numel()])
            terms = [part.view(*side.shape, -1) for part, side in zip(parts, (left, right), strict=True)]
        values, zero = torch.empty_like(self.values), left.new_zeros(())
        height = max(max_pairs // max(self.values[:1].numel(), 1), 1)
        for at in torch.arange(len(values), device=left.device).split(height):
            p, q = self._along_rows(left[at]), self._along_columns(right)
            angles = angles_of(_cosine(self.values[at], p * q))
            if form.centred is None:
                values[at] = hermite.series(self._along_rows(terms[0][at]), self._along_columns(terms[1]), angles)
            else:
                values[at] = form.centred(Pairs(p.sqrt(), q.sqrt(), angles, zero, zero))
        if self.same:
            return replace(self, values=values)
        after = [power(form, side.sqrt(), torch.zeros_like(side)) for side in (left, right)]
        return replace(self, values=values, rows=after[0], columns=after[1])

    def normalise(self) -> Gram:
        """After a division of the channels at each position by their l2 norm: K becomes a cosine over channels.

        Raises:
            ValueError: K of each input with itself is not known.
        """
        left, right = self._variances()
        values = _cosine(self.values, self._along_rows(left) * self._along_columns(right))
        if self.same:
            return replace(self, values=values)
        return replace(self, values=values, rows=(left > 0).double(), columns=(right > 0).double())

    def flatten(self) -> Gram:
        """After a flatten, which makes the positions channels: the mean over equal positions."""
        if not self.space:
            return self
        values = self._equal_positions() if self.all_pairs else self.values
        rows, columns = (None if t is None else t.flatten(1).mean(1) for t in (self.rows, self.columns))
        return Gram(values.flatten(2).mean(2), same=self.same, rows=rows, columns=columns)

    def mean(self) -> Gram:
        """After a mean over all positions: the mean over all pairs of positions.

        Raises:
            ValueError: the pairs of positions are not kept.
        """
        if self.space and not self.all_pairs:
            raise ValueError("all_pairs=False: a mean over positions needs all pairs, wanted Gram.of(all_pairs=True)")
        return Gram(self.values.flatten(2).mean(2), same=self.same) if self.space else self

    def _affine(self, weight_variance: float, bias_variance: float) -> Gram:
        w, b = _variance("weight_variance", weight_variance), _variance("bias_variance", bias_variance)
        sides = [None if t is None else t * w + b for t in (self.rows, self.columns)]
        return replace(self, values=self.values * w + b, rows=sides[0], columns=sides[1])

    def _variances(self) -> tuple[Tensor, Tensor]:
        """K of each input with itself, (N, *space) and (N', *space)."""
        if self.same:
            own = self._equal_positions().diagonal(dim1=0, dim2=1).movedim(-1, 0).contiguous()
            return own, own
        if self.rows is None or self.columns is None:
            raise ValueError("y: after a mean, K of x and y does not have K of each input with itself: wanted y=None")
        return self.rows, self.columns

    def _along_rows(self, t: Tensor) -> Tensor:
        """Numbers (n, *space, ...) of some of the N inputs, in a shape that broadcasts with `values`."""
        axes = len(self.space)
        return t.view(len(t), 1, *self.space, *[1] * axes * self.all_pairs, *t.shape[1 + axes :])

    def _along_columns(self, t: Tensor) -> Tensor:
        """Numbers (N', *space, ...) of the N' inputs, in a shape that broadcasts with `values`."""
        axes = len(self.space)
        return t.view(1, len(t), *[1] * axes * self.all_pairs, *self.space, *t.shape[1 + axes :])

    def _equal_positions(self) -> Tensor:
        """K at equal positions, (N, N', *space)."""
        if not self.all_pairs:
            return self.values
        p = math.prod(self.space)
        return self.values.reshape(*self.values.shape[:2], p, p).diagonal(dim1=2, dim2=3).unflatten(2, self.space)


def _cosine(values: Tensor, product: Tensor) -> Tensor:
    """K over the root of the product of both variances: exactly 1 for an input with itself."""
    return (values / torch.where(product > 0, product, 1.0).sqrt()).clamp(-1, 1)


def _inputs(name: str, x: Tensor) -> Tensor:
    if tensor(name, x).dim() < 2 or x.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: wanted (N, d) or (N, d, *space) with channels")
    values = x.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} is not finite")
    return values
