# SPDX-License-Identifier: BSD-3-Clause
"""Rainbow layers: a trained projection to a few channels, and random features of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from rainbow_fast.arguments import flag, integer, tensor
from rainbow_fast.infinite_width import expected_kernel
from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.ops.activations import ACTIVATIONS
from rainbow_fast.ops.registration import without_autocast
from rainbow_fast.ops.sample_project_align import sample_project_align


def gain(activation: str, negative_slope: float = 0.01) -> float:
    """``E[sigma(g)^2]^(-1/2)`` for a standard normal g: weights times this factor keep the mean square of activations.

    It is sqrt(2) for relu, as in He, Zhang, Ren and Sun, "Delving deep into rectifiers" (ICCV 2015). For a sigma that
    is not homogeneous it keeps a mean square of 1.
    """
    one = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    return float(expected_kernel(one, activation=activation, negative_slope=negative_slope)) ** -0.5


def initialise_(weight: Tensor, activation: str, negative_slope: float = 0.01) -> Tensor:
    """Fill the weight (r, in, *kernel) of a projection with uniform numbers of variance ``gain^2 / columns``.

    Then ``E |phi|^2 / n = |x|^2 / columns`` for the patches x of the input and any r, if sigma is homogeneous and there
    is no pooling: depth neither shrinks nor amplifies activations. For other sigma see `gain`.
    """
    bound = gain(activation, negative_slope) * math.sqrt(3 / weight[0].numel())
    with torch.no_grad():
        return weight.uniform_(-bound, bound)


class _RainbowLayer(nn.Module):
    """``phi = pool(sigma(G (W x + b) / sqrt(r)))``; a subclass has the projection ``W x + b`` as a module of torch."""

    projection: nn.Linear | nn.Conv2d
    features: RandomFeatures

    def __init__(self, projection: nn.Linear | nn.Conv2d, features: RandomFeatures) -> None:
        super().__init__()
        self.projection, self.features = projection, features
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W again, see `initialise_`; b becomes 0."""
        initialise_(self.projection.weight, self.features.activation, self.features.negative_slope)
        if self.projection.bias is not None:
            nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """phi from x, with the axes of x."""
        if self._samples_weights(x):
            weight, bias = self.sampled()
            s = self._apply_weights(x, weight, bias)
            phi = ACTIVATIONS[self.features.activation][0](s, self.features.negative_slope)
            return phi if self.features.pool is None else self.features.pool(phi)
        return self.features(self.projection(x))

    def sampled(self) -> tuple[Tensor, Tensor | None]:
        """The weights ``G W / sqrt(r)`` (n, in, *kernel) of the neurons and their biases, differentiable in W and b."""
        weight, bias = self.projection.weight, self.projection.bias
        how: dict[str, Any] = {"seed": self.features.key, "scale": self.features.factor}
        W = sample_project_align(self.features.n, weight, **how)
        if bias is None:
            return W, None
        return W, sample_project_align(self.features.n, bias.unsqueeze(1), **how).squeeze(1)

    def materialize(self) -> nn.Sequential:
        """The plain layer of n neurons with its non-linearity; it equals this one up to rounding."""
        with torch.no_grad(), without_autocast():
            weight, bias = self.sampled()
        layer = self._plain(bias is not None)
        layer.weight = nn.Parameter(weight)
        if bias is not None:
            layer.bias = nn.Parameter(bias)
        pool = [] if self.features.pool is None else [copy.deepcopy(self.features.pool)]
        return nn.Sequential(layer, self.features.sigma, *pool).train(self.training)

    def _samples_weights(self, x: Tensor) -> bool:
        """Whether weights ``G W`` and one product give phi, with less work than the projection and its features.

        With P positions, W of r m numbers and n neurons: ``n r m + P n m < P r (m + n)`` multiply-adds. More neurons
        than r would need more memory for the backward pass. The parts of the layer must be those that it was made
        with, without hooks, because they are not called. An exported graph must fit any number of samples.
        """
        projection, features = self.projection, self.features
        if isinstance(x, fx.Proxy) or torch.compiler.is_exporting() or type(projection) not in (nn.Linear, nn.Conv2d):
            return False
        if type(features) is not RandomFeatures or features.in_place_of is not None:
            return False
        if any(part._forward_hooks or part._forward_pre_hooks for part in (projection, features)):
            return False
        r, n, m = features.rank, features.n, projection.weight[0].numel()
        return n <= r and self._positions(x) * (r * (m + n) - n * m) > n * r * m

    def _positions(self, x: Tensor) -> int:
        raise NotImplementedError

    def _apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _plain(self, bias: bool) -> nn.Linear | nn.Conv2d:
        """A plain layer of n neurons without values."""
        raise NotImplementedError


class RainbowLinear(_RainbowLayer):
    r"""A linear layer of random neurons with a trained covariance: ``phi = sigma(G (W x + b) / sqrt(r))``.

    The only parameter is W (r, in), with ``bias=True`` also b (r,). G (out, r) is Gaussian, fixed, and generated from
    its address (`RandomFeatures`), so that the layer stores nothing of size out x in or out x r. The out neurons are
    independent samples of N(0, W^T W / r). A network of such layers can be sampled by `rainbow_fast.sample` with little
    loss, because it is a sample already.

    W is uniform with variance ``gain^2 / in``: torch's initialisation with another bound (`initialise_`). With relu,
    phi then has the mean square of x. The gradient of W is ``G^T / sqrt(r)`` times that of the weights of plain
    neurons, so that a learning rate r / out times the usual one takes steps of the same size.

    The backward pass keeps x and r numbers for each row of x. If out <= r and there are many rows, the weights of the
    neurons are computed first; it then keeps these, and out numbers for each row.

    Args:
        in_features: channels of x (..., in).
        out_features: neurons, the channels of phi (..., out).
        rank: r, 1 <= r <= in.
        seed, stream: address of G, as in `RandomFeatures`.
        activation, negative_slope: sigma, as in `rainbow_fast.random_features`; "relu" by default.
        bias: whether the projection has a bias b, which starts at 0; False by default.
        device, dtype: of W.

    Attributes:
        projection: the `nn.Linear` W.
        features: the `RandomFeatures`.

    Raises:
        TypeError, ValueError: an argument is outside its range; the rank is larger than `in_features`; the activation
            is unknown.

    Source: the law of weights of Guth, Menard, Rochette and Mallat (JMLR 2024), section 2, as a layer; White,
    Chaudhary, Wolf, Lajoie and Harris, "Learning stochastic rainbow networks" (2024).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        seed: int,
        stream: int = 0,
        activation: str = "relu",
        negative_slope: float = 0.01,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        columns = integer("in_features", in_features, 1)
        how: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope, "axis": -1}
        features = RandomFeatures(
            _rank(rank, columns), integer("out_features", out_features, 1), seed=seed, stream=stream, **how
        )
        super().__init__(
            nn.Linear(columns, features.rank, bias=flag("bias", bias), device=device, dtype=dtype), features
        )

    def _positions(self, x: Tensor) -> int:
        return x.numel() // max(x.shape[-1], 1)

    def _apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)

    def _plain(self, bias: bool) -> nn.Linear:
        return nn.Linear(self.projection.weight.shape[1], self.features.n, bias=bias, device="meta")


class RainbowConv2d(_RainbowLayer):
    r"""A convolution of random neurons with a trained covariance: ``phi = pool(sigma(G (W * x + b) / sqrt(r)))``.

    As `RainbowLinear`, with W (r, in, *kernel) as the weight of a convolution. Maps x (N, in, H, W) give phi
    (N, out, H', W').

    Args:
        in_channels: channels of x.
        out_channels: neurons, the channels of phi.
        kernel_size, stride, padding, dilation, padding_mode: as in `torch.nn.Conv2d`, with its defaults.
        rank: r, 1 <= r <= in * kernel.
        pool: max-pooling of the features, an `nn.MaxPool2d`; None (default) has none.
        seed, stream, activation, negative_slope, bias, device, dtype: as in `RainbowLinear`.

    Attributes:
        projection: the `nn.Conv2d` W.
        features: the `RandomFeatures`.

    Raises:
        TypeError, ValueError: as `RainbowLinear` and `torch.nn.Conv2d`; the rank is larger than in * kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank: int,
        *,
        seed: int,
        stream: int = 0,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        padding_mode: str = "zeros",
        pool: nn.MaxPool2d | None = None,
        activation: str = "relu",
        negative_slope: float = 0.01,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: dict[str, Any] = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "padding_mode": padding_mode,
        }
        columns = integer("in_channels", in_channels, 1) * math.prod(_sides(kernel_size))
        how: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope}
        neurons = integer("out_channels", out_channels, 1)
        features = RandomFeatures(_rank(rank, columns), neurons, seed=seed, stream=stream, pool=pool, **how)
        conv = nn.Conv2d(in_channels, features.rank, bias=flag("bias", bias), device=device, dtype=dtype, **geometry)
        super().__init__(conv, features)
        self._geometry = geometry

    def forward(self, x: Tensor) -> Tensor:
        """phi (N, out, H', W') from x (N, in, H, W); the sizes are those of the convolution, then of the pooling."""
        if not isinstance(x, fx.Proxy) and tensor("x", x).dim() != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}: wanted (N, in, H, W)")
        return super().forward(x)

    def _positions(self, x: Tensor) -> int:
        conv = self.projection
        return x.numel() // (max(x.shape[1], 1) * math.prod(conv.stride))  # type: ignore[arg-type]

    def _apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.projection._conv_forward(x, weight, bias)  # type: ignore[operator]

    def _plain(self, bias: bool) -> nn.Conv2d:
        return nn.Conv2d(self.projection.weight.shape[1], self.features.n, bias=bias, device="meta", **self._geometry)


def _sides(kernel_size: Any) -> tuple[int, int]:
    """Both sides of a kernel."""
    sides = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size, kernel_size)
    if len(sides) != 2:
        raise ValueError(f"kernel_size={kernel_size!r}: wanted one integer or two")
    return integer("kernel_size", sides[0], 1), integer("kernel_size", sides[1], 1)


def _rank(rank: int, columns: int) -> int:
    if integer("rank", rank, 1) > columns:
        raise ValueError(f"rank={rank}: wanted at most {columns}, the inputs of one neuron")
    return rank
