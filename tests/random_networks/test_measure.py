# SPDX-License-Identifier: BSD-3-Clause
"""Measures by site: they are those of the activations, in both modes, and change nothing."""

import copy
import json
import math
from collections.abc import Iterator

import pytest
import torch
from architectures import Mixer, build
from reading import COUNTED, IDS, MASK, TOKENS, Reader, T
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast import random_networks as rn
from rainbow_fast.networks import mlp
from rainbow_fast.random_networks import orthogonality
from rainbow_fast.random_networks.measure import MEASURES

pytestmark = pytest.mark.usefixtures("one_thread")
GENERATOR = torch.Generator().manual_seed(0)
NET = mlp((4, 5, 3), seed=0)
X = torch.ones(6, 4) + torch.eye(6, 4)
ROUNDING = {"rel": 1e-12}  # the same float64 numbers, in another order of sums


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def test_the_measures_are_those_of_the_activations():
    net, x = mlp((6, 12, 9, 4), seed=0).double(), random(5, 6)
    table = rn.measure(net, x, measures=MEASURES)
    tensors = {}
    h = x
    for number, layer in enumerate(net):
        h = layer(h).detach()
        if isinstance(layer, nn.Linear):
            tensors[str(number + 1), "z"] = h
        elif isinstance(layer, nn.ReLU):
            tensors[str(number), "phi"] = h
    tensors["outputs", "outputs"] = tensors.pop(("6", "z"))
    assert [(row.site, row.place) for row in table] == list(tensors)
    for row, H in zip(table, tensors.values(), strict=True):
        assert row.units == H.shape[1]
        for name in MEASURES:
            if name in ("isometry_gap", "gaussian_distance") and row.place == "outputs":
                assert math.isnan(row.mean(name)), "five samples of four units"
            else:
                assert row.mean(name) == pytest.approx(float(getattr(rn, name)(H)), **ROUNDING), name
    assert (table.samples, table.batches) == (5, 1)


@pytest.mark.parametrize("n", [5, 20], ids=["fewer samples than units", "more samples than units"])
def test_measures_of_a_site_share_its_gram_matrix(n, monkeypatch):
    """One product and one polar factor for all measures, of the smaller side; they are float64 for float32, too."""
    calls = []
    for name in ("cross_covariance", "polar"):
        function = getattr(orthogonality, name)
        count = lambda H, name=name, function=function: calls.append((name, H.dtype, H.shape[1])) or function(H)  # noqa: E731
        monkeypatch.setattr(orthogonality, name, count)
    net, x = nn.Sequential(nn.Linear(6, 12), nn.Tanh()), random(n, 6).float()
    chosen = ["orthogonality_gap", "effective_rank", "mean_cosine", "singular_value_gap"]
    chosen += ["stable_rank", "gaussian_distance"] if n == 5 else []
    row = rn.measure(net, x, measures=chosen, places=["phi"])[0]
    assert calls[:2] == [("cross_covariance", torch.float64, min(n, 12)), ("polar", torch.float64, 12)]
    assert len(calls) == 4, "the same again for the outputs"
    H = net(x).detach().double()
    for name in chosen:
        assert row.mean(name) == pytest.approx(float(getattr(rn, name)(H)), **ROUNDING), name


class Sum(nn.Module):
    """Two inputs that are added."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(5, 12), nn.Linear(3, 12)
        self.norm, self.act, self.last = nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.last(self.act(self.norm(self.left(u) + self.right(v))))


U, V = random(2, 9, 5), random(2, 9, 3)


@pytest.mark.parametrize("train", [True, False])
def test_networks_of_several_inputs(train):
    """By place, by name, with labels and in batches: as the network that takes them side by side."""
    net = Sum().double().train(train)
    before = copy.deepcopy(net.state_dict())
    forms = [
        [((u, v), None) for u, v in zip(U, V, strict=True)],
        [{"v": v, "u": u, "labels": torch.zeros(9).long()} for u, v in zip(U, V, strict=True)],
        [((u, v), torch.zeros(9).long()) for u, v in zip(U, V, strict=True)],
    ]
    tables = [rn.measure(net, form) for form in forms]
    assert [(row.site, row.place) for row in tables[0]] == [("act", "z"), ("act", "phi"), ("outputs", "outputs")]
    for u, v, number in zip(U, V, range(2), strict=True):
        with torch.no_grad():
            outputs = copy.deepcopy(net)(u, v)
        for table in tables:
            assert table.batches == 2 and table.samples == 9
            gap = table[-1].values["orthogonality_gap"][number]
            assert gap == pytest.approx(float(rn.orthogonality_gap(outputs)), rel=1e-9)
    assert net.training == train and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    one = rn.measure(net, {"u": U[0], "v": V[0]})
    assert one.batches == 1 and one[-1].mean() == tables[1][-1].values["orthogonality_gap"][0]


def test_a_dict_of_a_single_first_input_is_a_tensor():
    net, x = mlp((6, 12, 4), seed=0).double(), random(5, 6)
    assert rn.measure(net, {"input": x}).to_dict() == rn.measure(net, x).to_dict()


@pytest.mark.parametrize("convolution", [False, True], ids=["last axis", "second axis"])
def test_padded_positions_count_as_zero(convolution):
    """Whatever stands there; shorter batches are padded. Sites are those of `sites`."""
    net = Reader(convolution)
    data = [{"input_ids": torch.where(COUNTED, IDS, value), "attention_mask": MASK} for value in (0, 5)]
    tables = [rn.measure(net, each) for each in data]
    assert tables[0].to_dict() == tables[1].to_dict()
    assert list(dict.fromkeys(row.site for row in tables[0])) == [site.name for site in rf.sites(net, TOKENS)]
    z = (net.up(net.words(IDS) + attended(net)).detach() * MASK[..., None]).flatten(1)
    assert tables[0][0].units == T * 20
    assert tables[0][0].mean() == pytest.approx(float(rn.orthogonality_gap(z)), rel=1e-6)  # rounding of float32
    short = MASK.sum(1) <= 5
    few = {name: each[short][:20] for name, each in TOKENS.items()}
    shorter = {name: each[:, :5] for name, each in few.items()}
    longer = {name: each[~short][:20] for name, each in TOKENS.items()}
    assert rn.measure(net, [longer, shorter]).to_dict() == rn.measure(net, [longer, few]).to_dict()


def attended(net: nn.Module) -> Tensor:
    q, k, v = net.qkv(net.words(IDS)).chunk(3, -1)
    return (q @ k.transpose(1, 2) / math.sqrt(12)).masked_fill(MASK[:, None] == 0, -1e9).softmax(-1) @ v


def test_maps_are_flattened_and_several_batches_have_a_spread():
    net, batches = build(Mixer).double(), random(3, 7, 1, 8, 8)
    table = rn.measure(net, list(batches), places=["phi"])
    singles = [rn.measure(net, x, places=["phi"]) for x in batches]
    assert {row.place for row in table} == {"phi", "outputs"} and table.batches == 3
    for at, row in enumerate(table):
        values = torch.tensor([single[at].mean() for single in singles], dtype=torch.float64)
        assert list(row.values["orthogonality_gap"]) == pytest.approx(values.tolist(), **ROUNDING)
        assert row.mean() == pytest.approx(float(values.mean()), **ROUNDING)
        assert row.deviation() == pytest.approx(float(values.std()), **ROUNDING)
        assert math.isnan(singles[0][at].deviation())
    assert table[0].units == 8 * 12  # the first site mixes the 16 tokens of 8 channels into 12
    labelled = [(x, torch.zeros(7, dtype=torch.int64)) for x in batches]
    assert rn.measure(net, labelled, places=["phi"]).to_dict() == table.to_dict()


@pytest.mark.parametrize("batch_norm", ["before", "after"])
def test_batch_norms_run_as_their_mode_says(batch_norm):
    """In train mode by the statistics of each batch, in eval mode by the running ones."""
    net, batches = mlp((6, 12, 9, 4), batch_norm=batch_norm, seed=0).double(), random(2, 40, 6) + 1
    before = copy.deepcopy(net.state_dict())
    table = rn.measure(net, list(batches))
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        outputs = [copy.deepcopy(net)(x) for x in batches]
    wanted = [float(rn.orthogonality_gap(H)) for H in outputs]
    assert list(table[-1].values["orthogonality_gap"]) == pytest.approx(wanted, rel=1e-9)
    evaluated = rn.measure(net.eval(), batches[0])
    assert not net.training
    assert evaluated[-1].mean() == pytest.approx(float(rn.orthogonality_gap(net(batches[0]).detach())), rel=1e-9)
    assert evaluated[-1].mean() > 1.05 * table[-1].values["orthogonality_gap"][0]


def test_nothing_changes_and_dropout_is_off():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    x = random(9, 4).float()
    net(x).sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    state = torch.get_rng_state()
    assert rn.measure(net, x).to_dict() == rn.measure(net.eval(), x).to_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert not net[1]._forward_hooks and not net[1]._forward_pre_hooks


class Branching(nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x))
        return self.last(h) if h.sum() > 0 else self.last(-h)


def test_networks_that_cannot_be_traced_or_have_no_site():
    net, x = Branching().double(), random(9, 4)
    table = rn.measure(net, x)
    assert [(row.site, row.place) for row in table] == [("relu", "z"), ("relu", "phi"), ("outputs", "outputs")]
    assert table[0].mean() == pytest.approx(float(rn.orthogonality_gap(net.first(x).detach())), **ROUNDING)
    [row] = rn.measure(nn.Sequential(nn.Linear(4, 3)).double(), x)
    assert row.site == "outputs"


def test_activations_without_a_measure():
    """NaN for batches of zeros, and for directions of samples that are zero."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[0].bias.fill_(0)
    x = torch.tensor([[1.0, 0, 0], [0, 2, 0], [-1, 0, 0]]).double()
    phi = rn.measure(net, x)[1]
    assert math.isnan(phi.mean("mean_cosine")) and math.isnan(phi.mean("stable_rank")) and phi.mean() > 0
    text = str(rn.measure(net, x))
    assert text.splitlines()[2].split()[:3] == ["1", "phi", "4"] and text.splitlines()[2].endswith("-")
    phi = rn.measure(net, -x.abs())[1]
    assert math.isnan(phi.mean())


class Endless:
    """Batches whose number is not known, as those of a loader of an iterable dataset."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([X, X])


@pytest.mark.parametrize(
    "batches, totals", [(X, [3] * 3), ([X, X], [6] * 6), (Endless(), [3] * 3 + [6] * 3)], ids=["one", "list", "unknown"]
)
def test_progress(batches, totals):
    """Tensor by tensor of all batches: z and phi of one site, and the outputs, whatever is measured of them."""
    calls: list[tuple] = []
    rn.measure(NET, batches, places=["phi"], progress=lambda *call: calls.append(call))
    assert [total for _, total, _ in calls] == totals
    assert [done for done, *_ in calls] == list(range(1, len(calls) + 1))
    assert [site for *_, site in calls] == ["2", "2", "outputs"] * (len(calls) // 3)


def test_table():
    torch.manual_seed(0)
    table = rn.measure(mlp((6, 12, 4), seed=0), list(torch.randn(2, 5, 6)))
    lines = str(table).splitlines()
    assert lines[0].split() == "site units orthogonality gap effective rank stable rank mean cosine".split()
    assert lines[1].split()[:3] == ["2", "z", "12"] and lines[3].split()[:2] == ["outputs", "4"]
    assert " ± " in lines[1] and lines[-1] == "2 batches of 5 samples"
    records = json.loads(table.to_json())
    assert (records["samples"], records["batches"], len(records["sites"])) == (5, 2, 3)
    gap = records["sites"][1]["measures"]["orthogonality_gap"]
    assert gap["mean"] == table[1].mean() and gap["values"] == list(table[1].values["orthogonality_gap"])
    frame = pytest.importorskip("pandas") and table.to_pandas()
    assert frame["orthogonality_gap"].tolist() == [row.mean() for row in table]
    assert frame["effective_rank_deviation"].tolist() == [row.deviation("effective_rank") for row in table]
    with pytest.raises(ValueError, match="^measure='isometry_gap': wanted one of orthogonality_gap, effective_rank"):
        table[0].mean("isometry_gap")


def test_plot():
    pytest.importorskip("matplotlib")
    table = rn.measure(mlp((6, 12, 9, 4), seed=0), list(torch.randn(2, 5, 6)))
    [axes] = table.plot().axes
    z = next(line for line in axes.lines if line.get_label() == "z")
    assert z.get_ydata().tolist() == [row.mean() for row in table if row.place == "z"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "4", "outputs"]
    assert axes.get_ylabel() == "orthogonality gap"
    assert table.plot("mean_cosine").axes[0].get_ylabel() == "mean cosine"


class TwoMasks(Reader):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_attention_mask: Tensor) -> dict[str, Tensor]:
        return super().forward(input_ids, attention_mask * decoder_attention_mask)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"measures": ["gap"]}, ValueError, "^measures='gap': wanted one of orthogonality_gap, effective_rank"),
        ({"measures": "mean_cosine"}, TypeError, "^measures='mean_cosine': wanted several names, such as"),
        ({"measures": []}, ValueError, "^measures: none, wanted some of orthogonality_gap"),
        ({"places": ["x"]}, ValueError, "^places='x': wanted one of z, phi"),
        ({"places": []}, ValueError, "^places: none, wanted some of z, phi"),
        ({"batches": [X, X[:3]]}, ValueError, "^batches: batch 1 has 3 samples, wanted 6 as in those before it"),
        ({"batches": X[:0]}, ValueError, "^batches: "),
        ({"batches": 3}, TypeError, "^batches: wanted a tensor"),
        ({"batches": {"a": X, "b": X}}, ValueError, "^batches: input 'a': the network takes input"),
        ({"batches": [X, {"a": X, "b": X}]}, TypeError, "^batches: batch 1 has inputs 'a', 'b', wanted a tensor as b"),
        (
            {"batches": [{"u": U[0], "v": V[0]}, U[0]]},
            ValueError,
            "^batches: a batch of one tensor, wanted 'u' float64",
        ),
        ({"module": Sum(), "batches": {"v": V[0]}}, ValueError, "^batches: input 'u' is missing: the network takes u"),
        (
            {"module": Reader(), "batches": {**TOKENS, "other_attention_mask": 1 - MASK}},
            ValueError,
            "^batches: input 'other_attention_mask': the network takes input_ids, attention_mask",
        ),
        (
            {"module": torch.fx.symbolic_trace(Sum()), "batches": {"u": U[0], "v": V[0]}},
            TypeError,
            "^module: a torch.fx graph of several inputs: wanted the module that it was traced from",
        ),
        (
            {"module": TwoMasks(), "batches": {**TOKENS, "decoder_attention_mask": 1 - MASK}},
            ValueError,
            "^batches: inputs 'attention_mask' and 'decoder_attention_mask' disagree about which of 7 positions count",
        ),
        ({"batches": X * math.nan}, ValueError, "^site '2': z is not finite"),
        ({"progress": "bar"}, TypeError, "^progress: wanted a function, True or None, got str"),
        ({"module": "net"}, TypeError, "^module: wanted an nn.Module, got str"),
        ({"module": nn.ReLU()}, ValueError, "^module: no parameters, wanted a network"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(change, error, message):
    with pytest.raises(error, match=message):
        rn.measure(**({"module": NET, "batches": X} | change))
