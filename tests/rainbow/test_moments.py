# SPDX-License-Identifier: BSD-3-Clause
"""The streaming cross-covariance."""

import pytest
import torch

import rainbow_fast as rf
from rainbow_fast.rainbow.channel_moments import BLOCK, ChannelMoments


def data(*space: int, N: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, *space, generator=generator, dtype=torch.float64)
    return x, torch.randn(N, 4, *space, generator=generator, dtype=torch.float64) + 1


@pytest.mark.parametrize("space", [(), (2, 3)])
def test_ragged_batches_count_by_their_samples(space):
    x, y = data(*space)
    moments = rf.CrossCovariance()
    for start, stop in ((0, 7), (7, 8), (8, 50)):
        assert moments.update(x[start:stop], y[start:stop]) is moments
    x, y = (t.movedim(1, -1).reshape(-1, t.shape[1]) for t in (x, y))
    torch.testing.assert_close(moments.compute(), x.T @ y / len(x))
    torch.testing.assert_close(moments.mean_x, x.mean(0))
    torch.testing.assert_close(moments.mean_y, y.mean(0))
    assert moments.count == len(x)
    assert moments.trace_x == pytest.approx(float(x.square().sum(1).mean()), rel=1e-12)  # float64 sums of 50 to 300
    assert moments.trace_y == pytest.approx(float(y.square().sum(1).mean()), rel=1e-12)
    torch.testing.assert_close(moments.y.variance(unbiased=True), y.var(0))


def test_one_argument_is_the_self_covariance():
    x, _ = data()
    moments = rf.CrossCovariance().update(x)
    torch.testing.assert_close(moments.compute(), x.T @ x / len(x))
    assert torch.equal(moments.mean_x, moments.mean_y)


def test_merge_reset_and_state():
    x, y = data()
    whole = rf.CrossCovariance().update(x, y)
    merged = rf.CrossCovariance().update(x[:20], y[:20]).merge(rf.CrossCovariance().update(x[20:], y[20:]))
    torch.testing.assert_close(merged.compute(), whole.compute())
    merged.merge(rf.CrossCovariance())
    assert merged.count == 50
    restored = rf.CrossCovariance()
    restored.load_state_dict(merged.state_dict())
    assert torch.equal(restored.compute(), merged.compute()) and restored.trace_y == merged.trace_y
    restored.update(x, y)
    assert merged.count == 50, "the state is a copy"
    restored.reset()
    assert restored.count == 0 and restored.state_dict() == {}
    restored.load_state_dict({})
    assert restored.count == 0


def test_float32_relu_samples_by_the_million():
    """The relative error is at most 1e-8 against float64 at N = 4e6, for means of positive numbers."""
    generator = torch.Generator().manual_seed(0)
    moments, exact = rf.CrossCovariance(), torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(40):
        x = torch.randn(100_000, 4, generator=generator).relu_()
        moments.update(x)
        exact += x.double().T @ x.double()
    exact /= 4e6
    assert moments.count == 4_000_000
    assert (moments.compute() - exact).norm() <= 1e-8 * exact.norm()  # as documented


@pytest.mark.parametrize("shape", [(2 * BLOCK + 1, 3), (5, 3, 2, BLOCK + 1)], ids=["samples", "positions"])
def test_sums_of_more_than_a_block(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).add_(1)
    moments = ChannelMoments()
    moments.update(x)
    exact = x.double().movedim(1, -1).flatten(0, -2)
    assert moments.count == len(exact)
    # A block has 512 terms of float32: sqrt(512) roundings of 6e-8, if they are random.
    apart = exact - moments.center
    torch.testing.assert_close(moments.total, apart.sum(0), rtol=0, atol=2e-6 * float(apart.abs().sum(0).max()))
    torch.testing.assert_close(moments.square, apart.square().sum(0), rtol=2e-6, atol=0)


def test_known_moments_are_not_taken_again():
    x, y = data(3, 4)
    of_x = ChannelMoments()
    of_x.update(x)
    moments = rf.CrossCovariance()
    moments.know(of_x)
    for part in (slice(0, 20), slice(20, None)):
        cross, total, _ = moments.begin(x[part], y.shape[1])
        cross += rf.cross_covariance(x[part] - of_x.center.view(-1, 1, 1), y[part])
        total += y[part].sum((0, 2, 3))
    wanted = rf.CrossCovariance().update(x, y)
    assert moments.count == wanted.count and moments.x is of_x and of_x.count == wanted.count
    torch.testing.assert_close(moments.compute(), wanted.compute())
    moments.reset()
    assert of_x.count == wanted.count, "whoever made them keeps them"
    moments.begin(x, y.shape[1])
    assert moments.trace_x == wanted.trace_x


def test_consuming_and_beginning_work_in_place():
    x, y = data(3, 4)
    wanted = rf.CrossCovariance().update(x[:20], y[:20]).update(x[20:], y[20:])
    moments, center = rf.CrossCovariance("stem"), torch.arange(4.0).double()
    for part in (slice(0, 20), slice(20, None)):
        cross, total, square = moments.begin(x[part], y.shape[1], center)
        of_x, of_y = (t[part] - c.view(-1, 1, 1) for t, c in ((x, moments.x.center), (y, center)))
        cross += rf.cross_covariance(of_x, of_y)
        total += of_y.sum((0, 2, 3))
        square += of_y.square().sum((0, 2, 3))
    assert moments.count == wanted.count
    torch.testing.assert_close(moments.mean_y, wanted.mean_y)
    # float64 sums about other centers
    assert (moments.trace_x, moments.trace_y) == pytest.approx((wanted.trace_x, wanted.trace_y), rel=1e-12)
    M = moments.consume()
    torch.testing.assert_close(M, wanted.compute())
    assert M.data_ptr() == cross.data_ptr() and moments.cross is None
    torch.testing.assert_close(moments.mean_x, wanted.mean_x)
    with pytest.raises(ValueError, match=r"layer 'stem': its sums have been consumed, wanted reset\(\) first"):
        moments.compute()
    with pytest.raises(ValueError, match=r"layer 'stem': its sums have been consumed, wanted reset\(\) first"):
        moments.begin(x, 4)


def test_errors_name_layer_and_side():
    x, y = data()
    with pytest.raises(ValueError, match="layer 'stem': no samples yet"):
        rf.CrossCovariance("stem").compute()
    with pytest.raises(ValueError, match="CrossCovariance: no samples yet"):
        _ = rf.CrossCovariance().mean_x
    y[3, 2] = torch.nan
    moments = rf.CrossCovariance("stem").update(x, y)
    with pytest.raises(ValueError, match="layer 'stem': y is not finite, first in channel 2"):
        moments.compute()
    x[3, 1] = torch.inf
    with pytest.raises(ValueError, match="layer 'stem': x is not finite, first in channel 1"):
        rf.CrossCovariance("stem").update(x, data()[1]).compute()
    overflowing = rf.CrossCovariance().update(torch.ones(1, 1))
    overflowing.load_state_dict(overflowing.state_dict() | {"cross": torch.full((1, 1), torch.inf)})
    with pytest.raises(ValueError, match=r"CrossCovariance: the products x y\^T overflow"):
        overflowing.compute()
    with pytest.raises(ValueError, match=r"x and y have 4 and 4 channels, wanted \(3, 4\) as before"):
        rf.CrossCovariance().update(*data()).update(data()[1])


def test_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match=r"state has the keys \['cross'\]: wanted"):
        rf.CrossCovariance().load_state_dict({"cross": torch.zeros(2, 2)})
    state = rf.CrossCovariance().update(*data()).state_dict()
    state["square_y"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"state: square_y has shape \(3,\), wanted \(4,\)"):
        rf.CrossCovariance().load_state_dict(state)


def test_reduction_of_the_accumulator():
    x, y = data()
    moments = rf.CrossCovariance().update(x, y)
    torch.testing.assert_close(moments.compute(), x.T @ y / 50)
    torch.testing.assert_close(moments.compute(reduction="sum"), x.T @ y)
    with pytest.raises(ValueError, match="reduction='none': wanted one of sum, mean"):
        moments.compute(reduction="none")
