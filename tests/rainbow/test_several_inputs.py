# SPDX-License-Identifier: BSD-3-Clause
"""Networks of several inputs: as tuples and dicts, by place and by name, and in files."""

import copy
import pickle

import pytest
import torch
from reading import CLASSES, COUNTED, IDS, MASK, TOKENS, N, Reader, T
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rainbow_fast as rf
from rainbow_fast.joint_inputs import JointInputs
from rainbow_fast.tracing.agreement import distances

GENERATOR = torch.Generator().manual_seed(0)
U, V = torch.randn(N, 5, generator=GENERATOR), torch.randn(N, 3, generator=GENERATOR)
Y = torch.randint(0, CLASSES, (N,), generator=GENERATOR)


class Sum(nn.Module):
    """Two inputs that are added, and an option."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.left, self.right, self.act = nn.Linear(5, 16), nn.Linear(3, 16), nn.ReLU()
        self.middle, self.act_2, self.last = nn.Linear(16, 24), nn.GELU(), nn.Linear(24, CLASSES)

    def forward(self, u: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
        z = self.left(u) + scale * self.right(v)
        return self.last(self.act_2(self.middle(self.act(z))))


FORMS = {
    "a pair of inputs": (((U, V), Y), lambda net: net(U, V)),
    "lists": (([U, V], Y), lambda net: net(U, V)),
    "no labels": (((U, V), None), lambda net: net(U, V)),
    "a dict and labels": (({"u": U, "v": V}, Y), lambda net: net(u=U, v=V)),
    "a dict with labels": ({"labels": Y, "v": V, "u": U}, lambda net: net(v=V, u=U)),
    "a dict with label": ({"u": U, "v": V, "label": Y, "text": ["..."]}, lambda net: net(u=U, v=V)),
    "a loader of dicts": ([{"u": U[i : i + 20], "v": V[i : i + 20]} for i in (0, 20, 40)], lambda net: net(u=U, v=V)),
    "a loader of pairs": ([((U[i:][:20], V[i:][:20]), Y[i:][:20]) for i in (0, 20, 40)], lambda net: net(U, V)),
    "a data loader": (DataLoader([((U[i], V[i]), Y[i]) for i in range(N)], 20), lambda net: net(U, V)),
}  # fmt: skip


@pytest.mark.parametrize("data, call", FORMS.values(), ids=FORMS)
def test_forms(data, call, tmp_path):
    """Every form gives the network that the inputs side by side give; it is called as the reference is."""
    net = Sum()
    network, report = rf.sample(net, data, factor=3, holdout=0)
    outputs = call(network)
    joined = Joined(net)
    wanted = rf.sample(joined, torch.cat([U, V], 1), factor=3, holdout=0)[0](torch.cat([U, V], 1))
    assert distances(outputs, wanted) < 1e-5  # the same sums, of chunks of another size
    assert distances(call(network.materialize()), outputs) < 1e-5
    assert report.accuracy == {} or report.accuracy["reference_alignment"] == float(
        (net(U, V).argmax(1) == Y).double().mean()
    )
    same = rf.sample(net, data, law="identity", holdout=0)[0]
    assert distances(call(same), net(U, V)) < 5e-6
    rf.save(network, tmp_path / "network.safetensors")
    assert torch.equal(call(rf.load(tmp_path / "network.safetensors", net)), outputs)


class Joined(nn.Module):
    def __init__(self, net: Sum) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :5], x[:, 5:])


def test_the_names_stay():
    table = rf.sites(Sum(), {"u": U, "v": V})
    assert [site.name for site in table] == ["act", "act_2"] and table.route == "graph"
    model = rf.fit(Sum(), {"u": U, "v": V})
    assert type(model.reference) is Sum and torch.equal(model.reference(U, V), Sum()(U, V))
    assert set(model.reference.state_dict()) == set(Sum().state_dict())
    network = model.sample()[0]
    assert network.inputs == {"u": (5,), "v": (3,)}
    graph = network.materialize().graph
    assert [node.target for node in graph.find_nodes(op="placeholder")] == ["u", "v"]
    plain = rf.sample(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), U)[0]
    assert plain.inputs is None


def test_a_single_first_input_is_a_tensor():
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    network, report = rf.sample(net, {"input": U, "labels": Y}, factor=2)
    wanted, of_tensor = rf.sample(net, (U, Y), factor=2)
    assert network.inputs is None and report.accuracy == of_tensor.accuracy
    assert torch.equal(network(U), wanted(U)) and torch.equal(network(input=U), wanted(U))
    with pytest.raises(TypeError, match="'other'"):
        network(other=U)


def test_models_in_files(tmp_path):
    model = rf.fit(Reader(), {**TOKENS, "labels": torch.where(COUNTED, IDS % CLASSES, -100)})
    rf.save_model(model, tmp_path / "model.safetensors")
    again = rf.load_model(tmp_path / "model.safetensors", Reader())
    assert again.sites[0].z.count == model.sites[0].z.count
    (network, report), (wanted, of_model) = (each.sample(factor=2) for each in (again, model))
    assert distances(network(**TOKENS), wanted(**TOKENS)) == 0 and report.accuracy == of_model.accuracy
    rf.save(network, tmp_path / "network.safetensors")
    assert distances(rf.load(tmp_path / "network.safetensors", Reader())(**TOKENS), wanted(**TOKENS)) == 0
    with pytest.raises(ValueError, match="network.safetensors does not fit the reference: input 'input_ids': the net"):
        rf.load(tmp_path / "network.safetensors", renamed())


def renamed() -> nn.Module:
    class Other(Reader):
        def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(ids, mask)

    return Other()


class EndOfText(Reader):
    """Takes the position of token 2, of which each text has one."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = super().forward(input_ids, attention_mask)["logits"]
        return x[input_ids == 2].view(len(input_ids), -1, CLASSES)[:, -1]


@pytest.mark.parametrize("several", [False, True])
def test_networks_of_special_tokens(several, tmp_path):
    ids = torch.cat([IDS.clamp(min=3), torch.full((N, 1), 2)], 1)
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if several else ids
    network, _ = rf.sample(EndOfText(), data, factor=2)
    call = (lambda net: net(**data)) if several else (lambda net: net(ids))
    assert distances(call(network.materialize()), call(network)) < 1e-5
    rf.save(network, tmp_path / "network.safetensors")
    again = rf.load(tmp_path / "network.safetensors", EndOfText())
    assert torch.equal(call(again), call(network))
    assert distances(call(again.materialize()), call(network)) < 1e-5


def test_half_precision_and_float64():
    data = {"u": U.double(), "v": V.double()}
    for dtype in (torch.float64, torch.bfloat16):
        network, _ = rf.sample(Sum().to(dtype), data, factor=2)
        assert network(U.to(dtype), V.to(dtype)).dtype == dtype


def test_plan_and_resume(tmp_path):
    rf.plan(Reader(), TOKENS, factor=4)
    runs = [rf.sample(Reader(), TOKENS, factor=2, resume_dir=str(tmp_path / "run"))[0] for _ in range(2)]
    assert distances(runs[0](**TOKENS), runs[1](**TOKENS)) == 0
    for storage in ("file", "recompute"):
        network = rf.sample(Reader(), TOKENS, factor=2, storage=storage)[0]
        assert distances(network(**TOKENS), rf.sample(Reader(), TOKENS, factor=2)[0](**TOKENS)) == 0


class Scores(nn.Module):
    """Scores that compare the samples of a batch, beside embeddings that depend on each alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Sequential(nn.Linear(n, 9), nn.ReLU(), nn.Linear(9, 4)) for n in (5, 3))

    def forward(self, u: Tensor, v: Tensor) -> dict[str, Tensor]:
        a, b = self.one(u), self.other(v)
        return {"scores": a @ b.T, "of_u": a, "of_v": b}


def test_outputs_that_compare_samples():
    with pytest.raises(ValueError, match="^reference: the output for a sample depends on the other samples"):
        rf.fit(Scores(), {"u": U, "v": V})
    network, report = rf.sample(Scores(), {"u": U, "v": V}, output="of_u", factor=2)
    assert len(report.sites) == 2 and network(U, V)["scores"].shape == (N, N)


class Cached(nn.Module):
    """Returns an object that no graph can return, unless its configuration says otherwise, as in transformers."""

    class Config:
        use_cache = True

    class Cache:
        def __init__(self, z: Tensor) -> None:
            self.z = z

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.config = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), Cached.Config()

    def forward(self, x: Tensor) -> dict[str, object]:
        if len(x.shape) != 2:  # it needs sizes
            raise ValueError
        y = self.layers(x)
        return {"y": y, "cache": Cached.Cache(y)} if self.config.use_cache else {"y": y}


def test_caches_are_not_returned():
    net = Cached()
    network, _ = rf.sample(net, U, law="identity", holdout=0)
    assert set(network(U)) == {"y"} and distances(network(U)["y"], net(U)["y"]) < 1e-5
    assert net.config.use_cache is True


class MadeInside(nn.Module):
    """Calls an activation module that it makes in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.ReLU()(self.a(x)))


def test_modules_made_in_a_forward():
    network, report = rf.sample(MadeInside(), U, law="identity", holdout=0)
    assert [site.site for site in report.sites] == ["relu"]


REFUSED = {
    "an unknown name": ({"u": U, "w": V}, "^data: input 'w': the network takes u, v, scale"),
    "a missing one": ({"u": U, "scale": V}, "^data: input 'v' is missing: the network takes u, v, scale"),
    "too many": (((U, V, U, V), None), "^data: input 3: the network takes u, v, scale"),
    "two numbers of samples": ({"u": U, "v": V[:7]}, "^data: 'v' has 7 samples, wanted 60 as the first input"),
    "no sample": ({"u": U[:0], "v": V[:0]}, r"^data: wanted 'u' of shape .N, ....* with N >= 1, got .0, 5."),
    "complex": ({"u": U, "v": V + 0j}, r"^data: wanted 'v' of real numbers, got complex64 .60, 3."),
    "unsigned": ({"u": U, "v": V.to(torch.uint16)}, "^data: 'v' is uint16, wanted one of float64, float32"),
    "no tensors": ({"u": [1.0, 2.0]}, r"^data: wanted a dict with tensors of inputs by name, got .'u': list"),
    "an empty dict": ({}, "^data: wanted a dict with tensors of inputs by name, got"),
    "names that are none": ({0: U, 1: V}, "^data: wanted a dict with tensors of inputs by name, got"),
    "labels twice": (({"u": U, "v": V, "labels": Y}, Y), "^data: labels 'labels' and others beside them"),
    "two lengths": ([{"u": U, "v": V}, {"u": U, "v": V[:, :2]}], "^data: batches of inputs 'u' float32 .N, 5., 'v' fl"),
    "a batch of one input": ([{"u": U, "v": V}, U], "^data: a batch of one tensor, wanted 'u' float32"),
    "labels of another length": (({"u": U, "v": V}, Y[:5]), "^data: wanted one label for each of the 60 samples"),
}  # fmt: skip


@pytest.mark.parametrize("data, message", REFUSED.values(), ids=REFUSED)
def test_refused(data, message):
    for call in (rf.fit, rf.sites):
        if call is rf.fit or not isinstance(data, list):  # `sites` reads one batch
            with pytest.raises((TypeError, ValueError), match=message):
                call(Sum(), data)


def test_refused_elsewhere():
    good = {"u": U, "v": V}
    with pytest.raises(ValueError, match=r"^holdout: samples of shape \(5,\), wanted 'u' float32"):
        rf.fit(Sum(), good, holdout=U)
    with pytest.raises(ValueError, match="^holdout: samples of 'u' float32 .N, 5., wanted 'u' float32 .N, 5., 'v'"):
        rf.fit(Sum(), good, holdout={"u": U})
    with pytest.raises(ValueError, match="^data: several inputs .*, wanted one for several references"):
        rf.fit([Sum(), Sum()], good)
    with pytest.raises(
        TypeError, match="^reference: a torch.fx graph of several inputs: wanted the module that it was"
    ):
        rf.fit(torch.fx.symbolic_trace(Sum()), good)
    network = rf.sample(Sum(), good)[0]
    with pytest.raises(TypeError, match="^inputs: got 1 by place and none by name: wanted 'u' float32"):
        network(U)
    with pytest.raises(TypeError, match="^inputs: got 0 by place and u, w by name: wanted"):
        network(u=U, w=V)
    with pytest.raises(TypeError, match="^v: got list, wanted a tensor 'v' float32 .N, 3."):
        network(U, [1.0])
    with pytest.raises(ValueError, match=r"^v: got float32 .60, 2., wanted 'v' float32 .N, 3."):
        network(U, V[:, :2])
    with pytest.raises(ValueError, match=r"^inputs: got batches of \[5, 60\] samples, wanted one number"):
        network(U, V[:5])
    tokens = rf.sample(Reader(), TOKENS)[0]
    with pytest.raises(ValueError, match=r"^input_ids: got float32 .60, 7., wanted 'input_ids' int64"):
        tokens(input_ids=IDS.float(), attention_mask=MASK)
    assert tokens(input_ids=IDS.int(), attention_mask=MASK)["logits"].shape == (N, T, CLASSES)


def test_rows():
    """Inputs come out of their rows with the same bits."""
    inputs = {"a": torch.randn(4, 3), "b": torch.randn(4).double(), "c": torch.arange(8).view(4, 2, 1) > 3,
              "d": torch.randn(4, 2).bfloat16(), "e": torch.arange(4, dtype=torch.int16)}  # fmt: skip
    layout = JointInputs.of(inputs)
    rows = layout.join(inputs)
    assert rows.shape == (4, layout.size) and layout.size == 12 + 8 + 2 + 4 + 2
    assert all(torch.equal(part, inputs[name][1:3]) for name, part in layout.named(rows[1:3]).items())
    for name, part in layout.named(rows).items():
        assert part.dtype == inputs[name].dtype and torch.equal(part, inputs[name])


def test_a_loader_of_labels_is_none_of_inputs():
    """A pair of tensors stays a sample with its labels."""
    loader = DataLoader(TensorDataset(U, Y), 20)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    assert rf.sample(net, loader)[1].accuracy == rf.sample(net, (U, Y))[1].accuracy


def test_copies_and_pickles():
    network = rf.sample(Sum(), {"u": U, "v": V}, factor=2)[0]
    for same in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(same(U, V), network(U, V)) and same.inputs == network.inputs
