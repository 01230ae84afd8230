# SPDX-License-Identifier: BSD-3-Clause
"""What `FlopCounterMode` counts for the ops, against counts by hand: 2 flops for each multiply-add of a product."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import rainbow_fast as rf
from rainbow_fast.networks import mlp

ops = torch.ops.rainbow_fast


def counted(run) -> dict[str, int]:
    """The flops of each op; ops without any are left out."""
    with FlopCounterMode(display=False) as counter:
        run()
    flops = counter.get_flop_counts().get("Global", {})
    return {str(op).rpartition(".")[2]: count for op, count in flops.items() if count}


def normal(*shape, dtype=torch.float32, grad=False) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def test_every_op_has_a_formula():
    schemas = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("rainbow_fast::")]
    names = {name.partition("::")[2] for name in schemas}
    assert "random_features" in names
    assert {name for name in names if getattr(ops, name) not in flop_registry} == set()


@pytest.mark.parametrize("draw", [rf.gaussian, rf.uniform])
def test_random_numbers_have_no_products(draw):
    assert counted(lambda: draw(5, 6, seed=0)) == {}
    assert counted(lambda: draw(5, 6, seed=0, out=torch.empty(5, 6))) == {}


def test_cross_covariance():
    x, y, z = normal(5, 3, 2, 2), normal(5, 4, 2, 2), normal(5, 1, 2, 2)
    assert counted(lambda: rf.cross_covariance(x, y)) == {"cross_covariance": 2 * 20 * 3 * 4}
    assert counted(lambda: rf.cross_covariance(x, [y, z])) == {"cross_covariance": 2 * 20 * 3 * (4 + 1)}
    assert counted(lambda: rf.cross_covariance(x)) == {"cross_covariance": 20 * 3 * 4}, "one triangle"
    assert counted(lambda: rf.cross_covariance(x, center=True)) == {"cross_covariance": 20 * 3 * 4}
    out = torch.zeros(3, 5, dtype=torch.float64)
    assert counted(lambda: rf.cross_covariance_(out, x, [y, z])) == {"cross_covariance_out": 2 * 20 * 3 * (4 + 1)}
    assert counted(lambda: rf.cross_covariance(x[:0], y[:0])) == {}


def test_cross_covariance_backwards():
    """The gradient of each side is a product of the other side with the upstream gradient."""
    x, y = normal(20, 3, grad=True), normal(20, 4, grad=True)
    flops = counted(lambda: rf.cross_covariance(x, y).sum().backward())
    assert flops.pop("cross_covariance") == 2 * 20 * 3 * 4
    assert sum(flops.values()) == 2 * 2 * 20 * 3 * 4


@pytest.mark.parametrize("stride, places", [(1, 5 * 6), (2, 3 * 3)])
def test_patch_covariance(stride, places):
    """Counts are those of the unfolded maps, although the kernel shares products between shifts."""
    x, y = normal(4, 2, 5, 6), normal(4, 3, 5, 6)
    patch = (3, stride)
    flops = counted(lambda: rf.cross_covariance(x, y, patch=patch))
    assert flops == {"patch_covariance": 2 * 4 * places * (2 * 9) * (3 * 9)}
    assert counted(lambda: rf.cross_covariance(x, patch=patch)) == {"patch_covariance": 4 * places * 18 * 19}
    out = torch.zeros(18, 27, dtype=torch.float64)
    flops = counted(lambda: ops.patch_covariance_out(x, y, [3, stride, 1, 1], None, None, out))
    assert flops == {"patch_covariance_out": 2 * 4 * places * 18 * 27}


def test_polar():
    each = 12 * 3**2 * 8 + 24 * 3**3
    assert counted(lambda: rf.polar(normal(3, 8))) == counted(lambda: rf.polar(normal(8, 3))) == {"polar": each}
    assert counted(lambda: rf.polar(normal(5, 2, 3, 8))) == {"polar": 5 * 2 * each}
    assert counted(lambda: rf.polar_(normal(3, 8))) == {"polar_": each}
    M, A, statistics = normal(3, 8), normal(3, 8), torch.empty(4, dtype=torch.float64)
    assert counted(lambda: ops.polar_out(M, False, None, None, None, None, A, statistics)) == {"polar_out": each}


def test_polar_backwards():
    """H = M A^T, D A^T and its product with A, Omega times A; six products solve the Sylvester equation."""
    M = normal(3, 8, grad=True)
    flops = counted(lambda: rf.polar(M).A.sum().backward())
    products = 4 * 2 * 3**2 * 8
    assert flops == {"polar": 12 * 72 + 24 * 27, "polar_sylvester": 8 * 27 + 4 * 9 * 8, "mm": products}


def test_wavelet_modulus():
    """Rows 8 -> 4: each of 5 filters for 4 x 6 numbers, then 9 for 4 x 3; with the bank "a", 6 for 8 x 6 and 10."""
    standard = 2 * 5 * 3 * 9 * (5 * 4 * 6 + 9 * 4 * 3)
    z = normal(5, 3, 8, 6, grad=True)
    flops = counted(lambda: rf.wavelet_modulus(z).sum().backward())
    assert flops == {"wavelet_modulus": standard, "wavelet_modulus_gradient": 2 * standard}
    assert counted(lambda: rf.wavelet_modulus(torch.complex(z.detach(), z.detach()), skip=True)) == {
        "wavelet_modulus": 2 * standard
    }
    a = 2 * 5 * 3 * 9 * (6 * 8 * 6 + 10 * 8 * 6)
    assert counted(lambda: rf.wavelet_modulus(z.detach(), "a")) == {"wavelet_modulus": a}


def test_sample_project_align():
    L, A = normal(3, 4), normal(4, 5)
    LA = 2 * 3 * 4 * 5
    both = counted(lambda: rf.sample_project_align(9, L, A, seed=0))
    assert both.pop("sample_project_align") == 2 * 9 * 3 * 5
    assert list(both.values()) == [LA], "torch's own product"
    assert counted(lambda: rf.sample_project_align(9, L, seed=0)) == {"sample_project_align": 2 * 9 * 3 * 4}
    assert counted(lambda: rf.sample_project_align(9, L, seed=[0, 1])) == {"sample_project_align": 2 * 2 * 9 * 3 * 4}
    kernel = normal(3, 4, 5, 5)
    assert counted(lambda: rf.sample_project_align(9, kernel, seed=0)) == {"sample_project_align": 2 * 9 * 3 * 4 * 25}
    for seed, out in ((0, torch.empty(9, 4)), ([0, 1], torch.empty(2, 9, 4))):
        flops = 2 * 9 * 3 * 4 * (2 if seed else 1)
        assert counted(lambda seed=seed, out=out: rf.sample_project_align_(out, L, seed=seed)) == {
            "sample_project_align_out": flops
        }


def test_sample_project_align_backwards():
    L = normal(3, 4, grad=True)
    flops = counted(lambda: rf.sample_project_align(9, L, seed=0).sum().backward())
    assert flops == {"sample_project_align": 2 * 9 * 3 * 4, "mm": 2 * 9 * 3 * 4}


@pytest.mark.parametrize("address, times", [({"seed": 0}, 1), ({"seed": [0, 1, 2]}, 3), ({"G": normal(7, 4)}, 1)])
def test_random_features_and_passes(address, times):
    """N = 10 samples and positions, r = 4, n = 7; the features take 2 N n r = 560."""
    u, x, A = normal(5, 4, 2), normal(5, 6, 2), normal(6, 7)
    features, product = 2 * 10 * 7 * 4, 2 * 10 * 7 * 6
    assert counted(lambda: rf.random_features(u, 7, **address)) == {"random_features": times * features}
    flops = counted(lambda: rf.random_features_covariance(x, u, 7, center=None, **address))
    assert flops == {"random_features_covariance": times * (features + product)}
    flops = counted(lambda: rf.random_features_projection(u, A, **address))
    assert flops == {"random_features_projection": times * (features + product)}


def test_moduli_take_two_products():
    """The same sizes: features take 2 * 560, products of features with A or x stay."""
    u, x, A = torch.view_as_complex(normal(5, 4, 2, 2)), normal(5, 6, 2), normal(6, 7)
    how = {"activation": "modulus", "seed": 0}
    assert counted(lambda: rf.random_features(u, 7, **how)) == {"random_features": 2 * 560}
    flops = counted(lambda: rf.random_features_covariance(x, u, 7, **how))
    assert flops == {"random_features_covariance": 2 * 560 + 840}
    assert counted(lambda: rf.random_features_projection(u, A, **how)) == {"random_features_projection": 2 * 560 + 840}
    pairs, address = torch.view_as_real(u), (rf.key(0), None, "modulus", 0.0, 1.0, None, None)
    flops = counted(lambda: ops.random_features_out(pairs, None, *address, torch.empty(5, 7, 2)))
    assert flops == {"random_features_out": 2 * 560}
    v = u.detach().clone().requires_grad_()
    flops = counted(lambda: rf.random_features_projection(v, A, **how).sum().backward())
    assert flops["random_features_gradient"] == 2 * 2 * 560 + 840


def test_several_projections_share_their_features():
    u, parts = normal(10, 4), [normal(6, 7), normal(2, 3)]
    flops = counted(lambda: rf.random_features_projection(u, parts, seed=0))
    assert flops == {"random_features_projection": 2 * 10 * (7 * 4 + 6 * 7 + 2 * 3)}
    each = [normal(2, 6, 7)]  # one A for each of two seeds
    flops = counted(lambda: rf.random_features_projection(u, each, seed=[0, 1]))
    assert flops == {"random_features_projection": 2 * 2 * 10 * (7 * 4 + 6 * 7)}


@pytest.mark.parametrize("key", [rf.key(0), rf.key([0, 1, 2])])
def test_random_features_into_given_memory(key):
    u, x, A, seeds = normal(5, 4, 2), normal(5, 6, 2), normal(6, 7), tuple(key.shape[:-1])
    times, how = 3 if seeds else 1, (key, None, "relu", 0.0, 1.0, None, None)
    out = torch.empty(*seeds, 5, 7, 2)
    assert counted(lambda: ops.random_features_out(u, None, *how, out)) == {"random_features_out": times * 560}
    out = torch.empty(*seeds, 5, 6, 2)
    flops = counted(lambda: ops.random_features_projection_out(u, [A], None, *how, [out]))
    assert flops == {"random_features_projection_out": times * (560 + 840)}
    sums = [torch.zeros(*seeds, *shape, dtype=torch.float64) for shape in ((6, 7), (7,), (7,))]
    flops = counted(lambda: ops.random_features_covariance_out(x, u, None, None, None, *how, *sums))
    assert flops == {"random_features_covariance_out": times * (560 + 840)}


def test_random_features_backwards():
    """The features again, and the gradient of u. The gradient of A or x is another pass."""
    u, x, A = normal(5, 4, 2, grad=True), normal(5, 6, 2, grad=True), normal(6, 7, grad=True)
    flops = counted(lambda: rf.random_features(u, 7, seed=0).sum().backward())
    assert flops == {"random_features": 560, "random_features_gradient": 2 * 560}
    flops = counted(lambda: rf.random_features_projection(u, A, seed=0).sum().backward())
    gradient = {"random_features_gradient": 2 * 560 + 840}
    passes = {"random_features_projection": 560 + 840, "random_features_covariance": 560 + 840}
    assert flops == passes | gradient
    assert counted(lambda: rf.random_features_covariance(x, u, 7, seed=0)[0].sum().backward()) == passes | gradient
    G = normal(7, 4, grad=True)
    flops = counted(lambda: rf.random_features(u, 7, G=G).sum().backward())
    assert flops == {"random_features": 560, "random_features_gradient": 3 * 560}


def test_shapes_are_enough():
    """Counts on the meta device, for sizes that fit into no memory."""
    u, A = torch.empty(10**6, 512, device="meta"), torch.empty(512, 10**6, device="meta")
    flops = counted(lambda: rf.random_features_projection(u, A, seed=0))
    assert flops == {"random_features_projection": 2 * 2 * 10**6 * 512 * 10**6}


@pytest.mark.filterwarnings("ignore:site")
def test_a_rainbow_network_counts_its_passes():
    network, _ = rf.sample(mlp((6, 8, 5, 2), seed=0), normal(100, 6), width=20)
    flops = counted(lambda: network(normal(10, 6)))
    assert flops.pop("random_features_projection") == 2 * 10 * 20 * (8 + 8) + 2 * 10 * 20 * (5 + 5)
    assert sum(flops.values()) == 2 * 10 * (6 * 8 + 8 * 5 + 5 * 2)
