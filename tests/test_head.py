"""Which layers are found, and what is said where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import cases
import torchdfa
from torchdfa import ConversionError
from torchdfa.head import Plan, make_plan


def plan(model: nn.Module, **kwargs: Any) -> Plan:
    defaults = {"head": None, "layers": "head", "boundary": "direct", "error_at": None, "example_input": None}
    return make_plan(model, **{**defaults, **kwargs})


@pytest.mark.parametrize("name", list(cases.MODELS))
def test_the_trailing_head_is_found(name: str) -> None:
    _, names, has_trunk = cases.MODELS[name]
    x = cases.batch()[0]
    found = plan(cases.make(name), example_input=x)
    assert found.chains == (names,)
    assert found.cuts == (names if has_trunk else names[1:])
    assert plan(cases.make(name), boundary="transpose", example_input=x).cuts == names[1:]


def test_two_branches_share_their_first_layer() -> None:
    found = plan(cases.TwoBranch())
    assert found.chains == (("shared", "actor.0", "actor.2"), ("shared", "critic"))
    assert found.cuts == ("shared", "actor.0", "actor.2", "critic")
    assert found.outputs_of("shared") == ["actor.2", "critic"]
    assert found.later("shared") == ("actor.0", "actor.2", "critic")


def test_returned_features_are_no_head_of_their_own() -> None:
    class WithFeatures(cases.Handwritten):
        def forward(self, x: torch.Tensor) -> Any:
            h = torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1)))
            return self.fc2(h), h

    assert plan(WithFeatures()).chains == (("fc1", "fc2"),)


def test_head_by_name() -> None:
    assert plan(cases.Vgg(), head="classifier").chains == (("classifier.0", "classifier.3", "classifier.5"),)
    with pytest.raises(ConversionError, match=r"head='clasifier' .*'classifier'"):
        plan(cases.Vgg(), head="clasifier")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"head": ""}, "head='' must be the name"),
        ({"head": 3}, "head=3 must be the name"),
        ({"layers": 3}, "list of layer names"),
        ({"layers": None}, "list of layer names"),
        ({"head": "classifier", "layers": ["classifier.0"]}, "both choose layers"),
        ({"head": "classifier", "layers": "all"}, "both choose layers"),
    ],
)
def test_arguments_that_choose_no_layers_or_choose_twice(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConversionError, match=sentence):
        plan(cases.make("vgg"), **arguments)


def test_error_at_takes_the_error_earlier() -> None:
    found = plan(cases.make("vgg"), error_at="classifier.3")
    assert found.chains == (("classifier.0", "classifier.3"),)
    assert found.cuts == ("classifier.0", "classifier.3")
    with pytest.raises(ConversionError, match=r"error_at='features' must be one of .*classifier\.5"):
        plan(cases.make("vgg"), error_at="features")


def test_all_layers_need_an_example_input_for_the_shapes() -> None:
    model = cases.make("sequential")
    with pytest.raises(ConversionError, match="example_input="):
        plan(model, layers="all")
    found = plan(model, layers="all", example_input=cases.batch()[0])
    assert found.chains == (("0", "3", "6", "9", "11"),)
    assert found.cuts == ("3", "6", "9", "11")
    assert found.widths["3"] == 4 * 6 * 6
    assert model.training


def test_named_layers() -> None:
    assert plan(cases.make("vgg"), layers=["classifier.3"]).cuts == ("classifier.3",)
    with pytest.raises(ConversionError, match=r"'classifier\.1'.* not a Linear or convolution.*classifier\.0"):
        plan(cases.make("vgg"), layers=["classifier.1"])
    with pytest.raises(ConversionError, match="list of layer names"):
        plan(cases.make("vgg"), layers="everything")
    with pytest.raises(ConversionError, match="list of layer names"):
        plan(cases.make("vgg"), layers=[])


def test_a_skip_connection_around_a_cut_is_refused() -> None:
    x = cases.batch()[0]
    for layers in ("all", ["a", "head.1"], ["b", "head.1"]):
        with pytest.raises(ConversionError, match=r"skip connection leads around '[ab]'"):
            plan(cases.make("residual"), layers=layers, example_input=x)


@pytest.mark.parametrize(
    "model, sentence",
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), "no fully-connected layer"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 5)), r"one layer \('2'\).*layers=\['2'\]"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Conv2d(1, 4, 3)), "does not end in fully-connected layers"),
        (nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3)), "lazy"),
    ],
)
def test_models_without_a_head_to_convert(model: nn.Module, sentence: str) -> None:
    with pytest.raises(ConversionError, match=sentence):
        torchdfa.convert_(model, "dfa")


def test_subclasses_and_parametrized_layers_are_refused() -> None:
    class Lora(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input) * 2

    with pytest.raises(ConversionError, match="'0' is a Lora"):
        torchdfa.convert_(nn.Sequential(Lora(4, 4), nn.ReLU(), nn.Linear(4, 3)), "dfa", layers=["0", "2"])
    model = cases.make("mlp")
    nn.utils.parametrizations.weight_norm(model[3])
    with pytest.raises(ConversionError, match="'3' is a ParametrizedLinear"):
        torchdfa.convert_(model, "dfa")


def test_tied_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    with pytest.raises(ConversionError, match="share weights"):
        torchdfa.convert_(model, "dfa")


def test_a_layer_called_twice_is_refused() -> None:
    class Twice(cases.Handwritten):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.fc1(torch.relu(self.conv(x)).flatten(1))
            return self.fc2(torch.relu(h)) + self.fc2(torch.tanh(h))

    with pytest.raises(ConversionError, match=r"called 2 times|does not end in"):
        torchdfa.convert_(Twice(), "dfa")
    with pytest.raises(ConversionError, match="'fc2' is called 2 times"):
        torchdfa.convert_(Twice(), "dfa", layers=["fc2"])
