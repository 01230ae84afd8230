# SPDX-License-Identifier: BSD-3-Clause
"""Options: each is declared once and is the same everywhere. A wrong name is an error that gives the nearest option."""

import inspect
import json
from dataclasses import fields

import pytest
import torch

import rainbow_fast as rf
from rainbow_fast.networks import mlp
from rainbow_fast.rainbow.options import METHODS, PAPER

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> rf.RainbowModel:
    return rf.fit(mlp((6, 8, 5, 2), seed=0), X)


FUNCTIONS = {
    rf.fit: (rf.FitOptions, rf.DataLimits),
    rf.sample: (rf.FitOptions, rf.SampleOptions, rf.Limits),
    rf.plan: (rf.FitOptions, rf.SampleOptions, rf.Limits),
    rf.compare: (rf.FitOptions, rf.Limits),
    rf.RainbowModel.sample: (rf.SampleOptions, rf.Limits),
    rf.RainbowModel.sample_many: (rf.Limits,),
    rf.RainbowModel.plan: (rf.SampleOptions, rf.Limits),
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_signatures_and_help_are_those_of_the_options(function):
    parameters = inspect.signature(function).parameters
    for kind in FUNCTIONS[function]:
        for f in fields(kind):
            assert parameters[f.name].default == f.default and parameters[f.name].kind is inspect.Parameter.KEYWORD_ONLY
            assert f"{f.name} = {f.default!r}: " in inspect.getdoc(function)
            assert len(f.metadata["help"]) > 20


def test_options_go_whole_or_by_name(model):
    by_name = model.sample(factor=2, method="calibrated", memory_budget=10**6)
    whole = model.sample(rf.SampleOptions(factor=2, method="calibrated"), rf.Limits(memory_budget=10**6))
    many = model.sample_many([rf.SampleOptions(factor=2, method="calibrated"), {"factor": 3}], rf.Limits())
    assert torch.equal(by_name[0](X), whole[0](X)) and torch.equal(many[0][0](X), whole[0](X))
    assert by_name[1].to_dict() == whole[1].to_dict() and by_name[1].options == whole[1].options
    assert model.plan(rf.SampleOptions(factor=2), machine=MACHINE) == model.plan(factor=2, machine=MACHINE)
    network, _ = rf.sample(model.reference, X, rf.FitOptions(holdout=0.2), factor=2)
    assert torch.equal(network(X), rf.sample(model.reference, X, holdout=0.2, factor=2)[0](X))


MACHINE = rf.Machine(
    **{name: 1e9 for name in ("kernels", "activations", "layers", "polar", "float64", "pooling", "copy")}
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(fator=4), "fator: no such option, did you mean factor?"),
        (lambda m: m.sample_many([{}, {"fator": 4}]), r"networks\[1\]: fator: no such option, did you mean factor?"),
        (lambda m: m.sample_many([{}], scrath_dir="."), "scrath_dir: no such option, did you mean scratch_dir?"),
        (lambda m: m.plan(aligment="polar"), "aligment: no such option, did you mean alignment?"),
        (lambda m: rf.sample(m.reference, X, max_sample=4), "max_sample: no such option, did you mean max_samples?"),
        (lambda m: rf.fit(m.reference, X, hold_out=0.2), "hold_out: no such option, did you mean holdout?"),
        (lambda m: rf.fit(m.reference, X, storage="file"), "storage: no such option, wanted some of holdout, holdout_"),
        (lambda m: rf.compare(m.reference, m.reference, X, pointwse=()), "pointwse: no such option, did you mean poin"),
        (lambda m: rf.plan(m.reference, X, ridgee=1), "ridgee: no such option, did you mean ridge?"),
        (lambda m: rf.SampleOptions.from_dict({"lw": "x"}), "lw: no such option, did you mean law?"),
        (lambda m: m.sample(rf.FitOptions()), "options: got FitOptions, wanted some of SampleOptions, Limits, or keyw"),
        (lambda m: m.sample(rf.SampleOptions(), factor=2), "factor: given beside SampleOptions, wanted it as a field"),
        (lambda m: m.sample(4), "options: got int, wanted some of SampleOptions, Limits"),
        (lambda m: m.sample(factor="4"), "factor is a str: wanted a number"),
        (lambda m: m.sample(align_flattened="yes"), "align_flattened='yes': wanted True or False"),
    ],
)
def test_what_is_no_option_is_named_with_the_nearest_one(model, call, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        call(model)


def test_a_message_about_one_network_of_several_names_it(model):
    with pytest.raises(ValueError, match=r"^factor=0: wanted a number above 0"):
        model.sample_many([{"factor": 0}])


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_presets_of_their_part(method):
    options = rf.SampleOptions(method=method)
    assert options.parts == METHODS[method] and options.resolved.resolved == options.resolved
    assert options.law is None and options.resolved.law == METHODS[method].law


def test_resolved_options_can_be_changed_and_stay_whole():
    """Equal values that are given twice are no contradiction."""
    for words in (
        {"method": "calibrated"},
        {"law": "bootstrap", "smoothing": 0.5},
        {"method": "regression", "ridge": 0.1},
    ):
        resolved = rf.SampleOptions(**words).resolved
        assert resolved.changed(factor=2).parts == resolved.parts
        assert rf.SampleOptions.from_dict(json.loads(json.dumps(resolved.to_dict()))).resolved == resolved


def test_what_follows_from_a_law_or_an_alignment():
    assert rf.SampleOptions(law="bootstrap").parts == PAPER.changed(law="bootstrap", keep_mean=True)
    regression = rf.SampleOptions(alignment="regression").parts
    assert regression == METHODS["regression"]
    assert rf.SampleOptions(method="regression", alignment="polar").parts == PAPER
    calibrated = rf.SampleOptions(method="calibrated", alignment="polar_complete").parts
    assert calibrated == METHODS["calibrated"].changed(alignment="polar_complete")


FORMER = [  # options, former name, its value, present name, its value
    (rf.SampleOptions, "h", 0.0, "smoothing", 0.0),
    (rf.SampleOptions, "mean_row", True, "keep_mean", True),
    (rf.SampleOptions, "energy", 0.5, "explained_variance", 0.5),
    (rf.SampleOptions, "network", 3, "network_index", 3),
    (rf.SampleOptions, "align", "flattened", "align_flattened", True),
    (rf.SampleOptions, "align", "channels", "align_flattened", False),
    (rf.Limits, "scratch", ".", "scratch_dir", "."),
    (rf.Limits, "resume", "run", "resume_dir", "run"),
    (
        rf.FitOptions,
        "pointwise",
        [torch.nn.ReLU],
        "pointwise_modules",
        (torch.nn.ReLU,),
    ),
    (rf.FitOptions, "iterations", 1, "procrustes_iterations", 1),
    (rf.FitOptions, "chunk", 7, "batch_size", 7),
]


@pytest.mark.parametrize(("kind", "former", "value", "name", "now"), FORMER, ids=lambda each: str(each)[:20])
def test_a_former_name_works_with_a_warning(kind, former, value, name, now):
    with pytest.warns(FutureWarning, match=f"^{former}: this option is now called {name}; the old name "):
        assert getattr(kind.from_dict({former: value}), name) == now
    with pytest.raises(TypeError, match=f"{former}: given beside {name}, which is its new name; wanted {name} alone"):
        kind.from_dict({former: value, name: now})


def test_former_names_of_functions(model, tmp_path):
    with pytest.warns(FutureWarning, match="pointwise: this option is now called pointwise_modules"):
        assert rf.sites(model.reference, pointwise=[torch.nn.Dropout]) == rf.sites(model.reference)
    with pytest.warns(FutureWarning, match="network: this option is now called network_index") as warned:
        assert model.sample(network=2)[1].options.network_index == 2
    assert warned[0].filename == __file__, "it points at the line of the caller"
    with pytest.raises(ValueError, match="align='pixels': wanted align_flattened=True or False"):
        with pytest.warns(FutureWarning):
            model.sample(align="pixels")
