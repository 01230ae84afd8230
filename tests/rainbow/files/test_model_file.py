# SPDX-License-Identifier: BSD-3-Clause
"""Networks can be sampled from a file later and elsewhere, without the training set and with the same bits."""

import pytest
import torch
from architectures import Residual, UNet, build
from damage import as_older, resealed
from here import fresh_python
from safetensors.torch import load_file
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import mlp
from rainbow_fast.rainbow.files.model_file import MODEL

pytestmark = [pytest.mark.filterwarnings("ignore:site .* samples for"), pytest.mark.usefixtures("one_thread")]


def images(*shape: int, N: int = 120, seed: int = 1) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed))


def labels(N: int = 120) -> Tensor:
    return torch.arange(N) % 10


def pixels(N: int = 120) -> Tensor:
    """Bytes, as images are stored."""
    return (images(3, 16, 16, N=N) * 40 + 128).clamp(0, 255).to(torch.uint8)


class Tied(nn.Module):
    """Two layers that share a weight, a buffer of another dtype than the network's, and its own pointwise module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.second.weight = self.first.weight
        self.act1, self.act2 = Cube(), nn.GELU()
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.second(self.act1(self.first(x)))))


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x * x


def tied(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Tied()


MODELS = {
    "residual": (lambda seed: build(Residual, seed=seed), lambda: (images(1, 8, 8), labels()), {}),
    "bytes": (lambda seed: build(UNet, seed=seed), pixels, {"holdout": 0}),
    "float64": (lambda seed: mlp((8, 6, 10), seed=seed).double(), lambda: (images(8), labels()), {"max_samples": 50}),
    "bfloat16": (lambda seed: mlp((8, 6, 10), seed=seed).bfloat16(), lambda: images(8), {"holdout": images(8, N=30)}),
    "tied": (tied, lambda: (images(8), labels()), {"pointwise_modules": (Cube,)}),
}
OPTIONS = ({"factor": 2, "method": "calibrated"}, {"factor": 3, "explained_variance": 0.9, "seed": 5})


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_a_loaded_model_samples_the_same_bits(tmp_path, kind):
    """The module that gives the architecture has other weights, in another dtype."""
    make, data, options = MODELS[kind]
    x = data()[0] if isinstance(data(), tuple) else data()
    model = rf.fit(make(0), data(), **options)
    rf.save_model(model, tmp_path / "model.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    other = make(1).float()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    loaded = rf.load_model(
        tmp_path / "model.safetensors", other, pointwise_modules=options.get("pointwise_modules", ())
    )
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    first = x[:20].to(next(model.reference.parameters()).dtype)
    assert torch.equal(loaded.reference(first), model.reference(first))
    for sample_options in OPTIONS:
        network, report = model.sample(**sample_options)
        again, report_again = loaded.sample(**sample_options)
        assert report.to_dict() == report_again.to_dict()
        assert torch.equal(network(first), again(first))
        for name, value in network.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name
    if kind == "tied":
        assert loaded.reference.first.weight is loaded.reference.second.weight


def test_in_another_process(tmp_path):
    model = rf.fit(build(Residual), (images(1, 8, 8), labels()))
    rf.save_model(model, tmp_path / "model.safetensors")
    there = fresh_python(f"""
import warnings; warnings.simplefilter("ignore")
import torch, rainbow_fast as rf
from architectures import Residual, build
torch.set_num_threads(1)
model = rf.load_model({str(tmp_path / "model.safetensors")!r}, Residual())
print(model.sample(factor=2, classifier="refit", method="calibrated")[1].to_json())
""")
    assert there.strip() == model.sample(factor=2, classifier="refit", method="calibrated")[1].to_json()


def test_a_probe_is_the_first_images_of_both_sets(tmp_path):
    x, y = images(1, 8, 8), labels()
    held = images(1, 8, 8, N=30, seed=2), labels(30)
    model = rf.fit(build(Residual), (x, y), holdout=held)
    rf.save_model(model, tmp_path / "model.safetensors", probe=50)
    kept = load_file(tmp_path / "model.safetensors")
    assert torch.equal(kept["alignment.x"], x[:50]) and torch.equal(kept["alignment.labels"], y[:50])
    assert torch.equal(kept["held_out.x"], held[0]) and torch.equal(kept["held_out.labels"], held[1])
    loaded = rf.load_model(tmp_path / "model.safetensors", build(Residual))
    _, report = loaded.sample(method="calibrated")
    assert (report.samples, report.held_out_samples) == (50, 30)
    for s, t in zip(model.sites, loaded.sites, strict=True):  # moments and directions are those of all images
        assert torch.equal(s.z.compute(), t.z.compute()) and s.activity == t.activity and t.z.count == s.z.count
    with pytest.warns(UserWarning, match="site 'relu_3': 20 samples for 12 channels"):
        rf.save_model(model, tmp_path / "model.safetensors", probe=20)
        rf.load_model(tmp_path / "model.safetensors", build(Residual))


def test_a_file_of_version_1_has_sums_about_zero(tmp_path):
    """Sums of such a file, computed here from the data, give the moments of the model."""
    path, x, net = tmp_path / "model.safetensors", images(8) + 2, mlp((8, 6, 10), seed=0).double()
    model = rf.fit(net, x, holdout=0.0)
    rf.save_model(model, path)
    tensors = load_file(path)
    for side in ("x", "y"):
        del tensors[f"sites.0.center_{side}"]
    z = net[:2](x.double()).detach()
    tensors |= {"sites.0.cross": z.T @ z}
    tensors |= {f"sites.0.total_{side}": z.sum(0) for side in ("x", "y")}
    tensors |= {f"sites.0.square_{side}": z.square().sum(0) for side in ("x", "y")}
    as_older(path, 1, {name: t.clone() for name, t in tensors.items()})
    with pytest.warns(UserWarning, match="path: .*model.safetensors was written by an older version, without checksum"):
        loaded = rf.load_model(path, net)
    (site,) = model.sites
    for got, wanted in (
        (loaded.sites[0].z.compute(), site.z.compute()),
        (loaded.sites[0].z.covariance(), site.z.covariance()),
        (loaded.sites[0].z.mean_x, site.z.mean_x),
        (loaded.sites[0].z.x.variance(), site.z.x.variance()),
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)  # float64; means are twice the deviations
    assert loaded.sample(method="calibrated")[1].sites[0].scale == pytest.approx(
        model.sample(method="calibrated")[1].sites[0].scale, rel=1e-12
    )


def test_what_save_model_refuses(tmp_path):
    model = rf.fit(mlp((8, 6, 10), seed=0), images(8))
    path = tmp_path / "model.safetensors"
    with pytest.raises(TypeError, match="model: wanted a RainbowModel, got RainbowNetwork"):
        rf.save_model(model.sample()[0], path)
    for probe, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=f"probe={probe}: wanted (probe >= 1|an integer)"):
            rf.save_model(model, path, probe=probe)
    with pytest.raises(FileNotFoundError):
        rf.save_model(model, tmp_path / "missing" / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_that_are_refused(tmp_path):
    net = mlp((8, 6, 10), seed=0)
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="path: no rainbow model at .*model.safetensors"):
        rf.load_model(path, net)
    model = rf.fit(net, images(8))
    rf.save_model(model, path)
    whole = path.read_bytes()
    for data, message in (
        (whole[:-1], "is not a whole safetensors file"),
        (whole.replace(b'"version":"4"', b'"version":"5"'), "has version 5, this package reads versions up to 4"),
        (whole.replace(b'"version":"4"', b'"version":"x"'), "has version x, this package reads versions up to 4"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"path: .*model.safetensors {message}"):
            rf.load_model(path, net)
    rf.save(model.sample()[0], path)
    with pytest.raises(ValueError, match="holds no rainbow model: its format is 'rainbow_fast.network', not 'rainbow_"):
        rf.load_model(path, net)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="holds no sampled network: its format is 'rainbow_fast.model'"):
        rf.load(path, net)
    for name in ("sites.0.cross", "alignment.x"):
        path.write_bytes(whole)
        resealed(path, MODEL, tensors={key: t for key, t in load_file(path).items() if key != name})
        with pytest.raises(ValueError, match=f"model.safetensors is damaged, it has no '{name}'"):
            rf.load_model(path, net)
    path.write_bytes(whole)
    resealed(path, MODEL, text="{")
    with pytest.raises(ValueError, match="model.safetensors is damaged: its header cannot be read"):
        rf.load_model(path, net)


@pytest.mark.parametrize(
    "other, error, message",
    [
        (lambda: "mlp", TypeError, "reference: wanted an nn.Module, got str"),
        (
            lambda: mlp((8, 6, 6, 10)),
            ValueError,
            "reference: it has '5.weight', which .*model.safetensors has not: wanted",
        ),
        (lambda: nn.Linear(8, 6), ValueError, "reference: it has 'weight', which .* has not: wanted the architecture"),
        (lambda: mlp((8, 6, 10))[:3], ValueError, "reference: it has no '3.weight', which .*model.safetensors has"),
        (lambda: mlp((8, 7, 10)), ValueError, r"'1.weight' has shape \(7, 8\), that of .* has \(6, 8\)"),
        (lambda: mlp((8, 6, 10), activation=nn.Tanh), ValueError, r"'2' has layers \['Tanh'\], .* has \['ReLU'\]"),
        (lambda: nn.Sequential(*mlp((8, 6, 10)), nn.Tanh()), ValueError, "its sites are 2, 4, those of .* 2$"),
    ],
    ids=["no module", "deeper", "one layer", "shorter", "wider", "tanh", "one more site"],
)
def test_another_architecture_is_refused(tmp_path, other, error, message):
    rf.save_model(rf.fit(mlp((8, 6, 10), seed=0), images(8)), tmp_path / "model.safetensors")
    with pytest.raises(error, match=message):
        rf.load_model(tmp_path / "model.safetensors", other())
