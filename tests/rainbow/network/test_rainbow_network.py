# SPDX-License-Identifier: BSD-3-Clause
"""The sampled network is an ordinary module, also on disk, and its classifier can be refit."""

import pytest
import torch
from damage import metadata_of, resealed
from here import fresh_python, threads
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast import backend
from rainbow_fast.networks import cnn, mlp
from rainbow_fast.rainbow.files.network_file import NETWORK

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")


def reference(*, positions: int = 1) -> nn.Sequential:
    """A fused site, a pooled site, an affine batch norm after it, a classifier of `positions` numbers a channel."""
    torch.manual_seed(0)
    side = int(positions**0.5)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.GELU()),
        nn.Conv2d(5, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(side),
        nn.Flatten(),
        nn.Linear(4 * positions, 3),
    ).eval()


def data(N: int = 150) -> tuple[Tensor, Tensor]:
    x = torch.randn(N, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0, :5, :5].mean((1, 2)) > 0).long() + (x[:, 0, 5:, 5:].mean((1, 2)) > 0).long()


SAMPLES = {
    "calibrated": {"factor": 30, "method": "calibrated"},
    "bootstrap": {"factor": 3, "law": "bootstrap", "smoothing": 0.5, "rank": 3},
    "narrow": {"width": 3, "method": "calibrated"},
}

IN_A_NEW_PROCESS = """
import sys, torch, rainbow_fast
torch.set_num_threads(1)
saved = torch.load(sys.argv[1], weights_only=False)
for name, (network, x, y) in saved.items():
    assert torch.equal(network(x), y), name
exported = torch.export.load(sys.argv[2]).module()
for x, y in zip(*torch.load(sys.argv[3])):
    assert torch.equal(exported(x), y), len(x)
"""


@threads(1)
@torch.no_grad()
def test_pickles_and_exports_to_a_new_process_with_equal_bits(tmp_path):
    x, y = data()
    model = rf.fit(reference(), (x, y))
    networks = {name: model.sample(**options)[0] for name, options in SAMPLES.items()}
    torch.save({name: (net, x, net(x)) for name, net in networks.items()}, tmp_path / "networks.pt")
    network = networks["calibrated"]
    exported = torch.export.export(network, (x[:4],), dynamic_shapes=({0: torch.export.Dim("N", min=2)},))
    torch.export.save(exported, tmp_path / "exported.pt2")
    batches = [x[:2], x[:33], x]
    torch.save((batches, [network(b) for b in batches]), tmp_path / "batches.pt")
    fresh_python(IN_A_NEW_PROCESS, *(tmp_path / name for name in ("networks.pt", "exported.pt2", "batches.pt")))


@pytest.mark.parametrize(
    "options", [*SAMPLES.values(), {"classifier": "refit"}, {"classifier": "refit_aligned"}], ids=str
)
@pytest.mark.parametrize("positions", [1, 4])
def test_saves_and_loads(tmp_path, options, positions):
    x, y = data()
    network, _ = rf.sample(reference(positions=positions), (x, y), **options)
    rf.save(network, tmp_path / "network.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["network.safetensors"]
    loaded = rf.load(tmp_path / "network.safetensors", reference(positions=positions))
    assert torch.equal(loaded(x), network(x))
    assert list(loaded.state_dict()) == list(network.state_dict()) and loaded.sampled == network.sampled


def test_files_that_are_refused(tmp_path):
    x, _ = data()
    path = tmp_path / "network.safetensors"
    network, _ = rf.sample(reference(), x)
    with pytest.raises(TypeError, match="network: wanted a RainbowNetwork, got Sequential"):
        rf.save(network.materialize(), path)
    with pytest.raises(FileNotFoundError, match="path: no sampled network at .*network.safetensors"):
        rf.load(path, reference())
    with pytest.raises(FileNotFoundError):
        rf.save(network, tmp_path / "missing" / "network.safetensors")
    rf.save(network, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="path: .*network.safetensors is not a whole safetensors file"):
        rf.load(path, reference())
    newer = NETWORK.version + 1
    path.write_bytes(whole.replace(b'"version":"%d"' % NETWORK.version, b'"version":"%d"' % newer))
    with pytest.raises(ValueError, match=f"has version {newer}, this package reads versions up to {NETWORK.version}"):
        rf.load(path, reference())
    path.write_bytes(whole)
    other = reference()
    nn.init.zeros_(other[-1].bias)
    with pytest.raises(ValueError, match="network.safetensors was sampled from another reference"):
        rf.load(path, other)
    tensors = load_file(path)
    del tensors["2.A"]
    save_file(tensors, path, metadata_of(path))
    with pytest.raises(ValueError, match="network.safetensors is damaged: it has checksums of other tensors: '2.A'"):
        rf.load(path, reference())
    path.write_bytes(whole)
    resealed(path, NETWORK, tensors=tensors)
    with pytest.raises(ValueError, match="network.safetensors is damaged, it has no '2.A'"):
        rf.load(path, reference())
    save_file(tensors, path)
    with pytest.raises(ValueError, match="network.safetensors holds no sampled network: its format is None"):
        rf.load(path, reference())


def test_state_dict_carries_a_sample_to_another():
    x, _ = data()
    model = rf.fit(reference(), x)
    first, second = (model.sample(factor=4, seed=seed, method="calibrated")[0] for seed in (0, 1))
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_nothing_but_the_site_changes():
    """The reference and the global random state do not change. The network is in eval mode and shares nothing."""
    net = reference().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = data()
    rng = torch.get_rng_state()
    network, _ = rf.sample(net, (x, y), classifier="refit_aligned")
    network.materialize()
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and not any(module.training for module in network.modules())
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in network.parameters()}
    assert isinstance(network.body[0][1], rf.RainbowActivation) and isinstance(network.body[3], nn.Identity)


def test_gradients_flow_to_the_input_and_to_the_layers_between():
    x, _ = data(60)
    network, _ = rf.sample(reference().double(), x.double(), method="calibrated", factor=2, seed=1)
    x = x[:2].double().requires_grad_()
    network(x).sum().backward()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        slope = (network(x + step * direction).sum() - network(x - step * direction).sum()) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-5)  # step 1e-6 of float64
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_works_without_the_compiled_kernels(monkeypatch):
    x = data()[0].double()
    network, _ = rf.sample(reference().double(), x, method="calibrated", factor=3)
    monkeypatch.setattr(backend, "BUILD", backend.Build())
    assert backend.available() == ["reference"]
    plain, _ = rf.sample(reference().double(), x, method="calibrated", factor=3)
    torch.testing.assert_close(plain(x), network(x), rtol=1e-9, atol=1e-12)  # float64, times the condition number of M


def test_site_by_name():
    network, _ = rf.sample(reference(), data()[0], sites=["2"])
    assert network.site("2").n == 6 and "relu, d=6, n=6" in repr(network)
    with pytest.raises(ValueError, match="name='0.1': wanted one of the sampled sites 2"):
        network.site("0.1")


def test_refit_classifier_is_ridge_regression_on_the_wide_features():
    """With one position (folded into A) and with four (flattened, after the pooling), it is the same as solved here."""
    for positions in (1, 4):
        x, y = data(400)
        net = reference(positions=positions).double()
        network, report = rf.sample(net, (x, y), classifier="refit", factor=3, method="calibrated", holdout=0)
        site, x = network.site("6"), x.double()
        z: list[Tensor] = []
        with torch.no_grad():
            handle = site.register_forward_pre_hook(lambda _, inputs, z=z: z.append(inputs[0]))
            network(x)
            handle.remove()
            features = net[7](site.features(z[0]) if site.kind.after is None else _unpooled(site, z[0]))
        f, onehot = features.flatten(1), nn.functional.one_hot(y, 3).double()
        f0, y0 = f - f.mean(0), onehot - onehot.mean(0)
        ridge = report.ridge * f0.square().sum() / f.shape[1]
        B = torch.linalg.solve(f0.T @ f0 + ridge * torch.eye(f.shape[1]), f0.T @ y0)
        torch.testing.assert_close(network(x), f0 @ B + onehot.mean(0))
        assert report.accuracy["alignment"] > report.accuracy["reference_alignment"]
        torch.testing.assert_close(network.materialize()(x), network(x))


def _unpooled(site: rf.RainbowActivation, z: Tensor) -> Tensor:
    rows = site.effective_rows()
    return torch.tanh(torch.einsum("nd,bdhw->bnhw", rows, z * site.gain.view(-1, 1, 1) + site.bias.view(-1, 1, 1)))


def test_refit_behind_a_padded_pooling():
    """A constant does not pass it unchanged. Still the mean prediction on the alignment set is that of the labels."""
    x, y = data(300)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(10, padding=1), nn.Flatten(), nn.Linear(4, 3))
    network, _ = rf.sample(net.double(), (x, y), holdout=0, classifier="refit", factor=4)
    torch.testing.assert_close(network(x.double()).mean(0), nn.functional.one_hot(y, 3).double().mean(0))


def test_refit_on_more_features_than_samples():
    x, y = data(60)
    network, report = rf.sample(mlp((100, 8, 3), seed=0), (x, y), classifier="refit", width=500)
    assert report.accuracy["alignment"] > 0.9 and network.site("2").A.shape == (3, 500)


def test_refit_on_phih():
    x, y = data(300)
    net = cnn((1, 4, 5), kernel_size=3, image_size=10, classes=3, seed=0)
    network, report = rf.sample(net, (x, y), classifier="refit_aligned", factor=8)
    assert report.ridge is not None and report.accuracy["alignment"] > report.accuracy["reference_alignment"]
    torch.testing.assert_close(network.materialize()(x), network(x), rtol=1e-4, atol=1e-4)  # float32


def test_refit_needs_channels_where_the_tail_has_them():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2))
    x, y = torch.randn(60, 5, 4), torch.zeros(60, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"classifier='refit': channels of the last site '1' are its last axis, of sha"
    ):
        rf.sample(net, (x, y), classifier="refit")
    rf.sample(net, (x, y), classifier="refit_aligned")
