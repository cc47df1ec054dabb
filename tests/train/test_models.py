"""The networks: Figure 3's layers, He weights, sizes that fit or are refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from torchdfa.errors import UsageError
from torchdfa.train import models


def test_vgg16_is_figure_3() -> None:
    model = models.build("vgg16", classes=10, channels=3, image_size=32)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [conv.out_channels for conv in convs] == widths
    assert all(conv.bias is None and conv.kernel_size == (3, 3) and conv.padding == (1, 1) for conv in convs)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == widths
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == 5
    head = model.get_submodule("classifier")
    assert [type(m) for m in head.children()] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    shapes = [tuple(m.weight.shape) for m in head.children() if isinstance(m, nn.Linear)]
    assert shapes == [(512, 512), (512, 512), (10, 512)]
    # 14,710,464 weights of the convolutions, 2 x 4,224 of the norms, 530,442 of the head
    assert sum(p.numel() for p in model.parameters()) == 15_249_354


@pytest.mark.parametrize("name, channels, size", [
    ("vgg16", 3, 32), ("vgg16", 3, 64), ("cnn", 1, 8), ("cnn", 3, 4), ("cnn", 3, 33), ("cnn", 3, 96), ("mlp", 1, 8),
])  # fmt: skip
@pytest.mark.parametrize("batch_norm", [False, True])
def test_outputs_have_one_column_a_class(name: str, channels: int, size: int, batch_norm: bool) -> None:
    model = models.build(
        name, classes=7, channels=channels, image_size=size, fc_width=24, fc_batch_norm=batch_norm
    ).eval()
    assert model(torch.rand(2, channels, size, size)).shape == (2, 7)
    linear = [m for m in model.get_submodule("classifier").children() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [24, 24, 7]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == (2 if batch_norm else 0)


def test_weights_are_he_initialised() -> None:
    """He et al. 2015: variance 2 / fan_in, biases 0; 512 x 512 x 9 samples put the estimate within 1 %."""
    torch.manual_seed(0)
    model = models.build("vgg16", classes=10, channels=3, image_size=32)
    conv = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    linear = model.get_submodule("classifier.0")
    assert conv.weight.var().item() == pytest.approx(2 / (512 * 9), rel=0.01)
    assert linear.weight.var().item() == pytest.approx(2 / 512, rel=0.02)  # type: ignore[union-attr, operator]
    assert all((m.bias == 0).all() for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("size, advice", [(8, 32), (33, 64), (48, 64)])
def test_vgg16_says_which_size_fits(size: int, advice: int) -> None:
    with pytest.raises(UsageError, match=rf"multiple of 32; got {size}; take --image-size {advice} or --model cnn"):
        models.build("vgg16", classes=10, channels=3, image_size=size)


def test_cnn_says_that_images_are_too_small() -> None:
    with pytest.raises(UsageError, match=r"at least 4x4 pixels; got 3x3"):
        models.build("cnn", classes=10, channels=3, image_size=3)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="--model must be one of cnn, mlp, vgg16; got 'alexnet'"):
        models.build("alexnet", classes=10, channels=3, image_size=32)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_head_has_as_many_layers_as_asked_for(layers: int) -> None:
    model = models.build("mlp", classes=4, channels=1, image_size=4, fc_layers=layers, fc_width=6, dropout=0.3)
    head = model.get_submodule("classifier")
    shapes = [tuple(m.weight.shape) for m in head.children() if isinstance(m, nn.Linear)]
    widths = [16, *[6] * (layers - 1), 4]
    assert shapes == [(after, before) for before, after in itertools.pairwise(widths)]
    assert [m.p for m in head.children() if isinstance(m, nn.Dropout)] == [0.3] * (layers - 1)


def test_a_fixed_output_is_signs_of_hes_deviation_and_does_not_learn() -> None:
    model = models.build("cnn", classes=10, channels=1, image_size=8, fc_layers=1, fixed_output=True)
    (layer,) = model.get_submodule("classifier").children()
    assert isinstance(layer, nn.Linear)
    assert layer.bias is None
    assert not layer.weight.requires_grad
    scale = (2 / layer.in_features) ** 0.5
    assert layer.weight.abs().unique().tolist() == pytest.approx([scale])
    assert 0.3 < (layer.weight > 0).float().mean() < 0.7
    model(torch.rand(3, 1, 8, 8)).sum().backward()
    assert layer.weight.grad is None
    assert model.get_submodule("features.0").weight.grad is not None


def test_a_fixed_output_behind_hidden_layers_keeps_its_initial_weights() -> None:
    def head(fixed_output: bool) -> nn.Linear:
        torch.manual_seed(3)
        build = models.build("cnn", classes=10, channels=1, image_size=8, fc_width=16, fixed_output=fixed_output)
        layer = build.get_submodule("classifier.4")
        assert isinstance(layer, nn.Linear)
        return layer

    assert torch.equal(head(fixed_output=True).weight, head(fixed_output=False).weight)
    assert [(name, p.requires_grad) for name, p in head(fixed_output=True).named_parameters()] == [("weight", False)]


def test_an_absurd_number_of_layers_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(UsageError, match="--fc-layers must be at most 100; got 1000000000"):
        models.build("mlp", classes=10, channels=1, image_size=4, fc_layers=10**9)
