"""The family: parameter counts, shapes, refusals, torchvision's weights, initialisation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torchvision

from imagenet_prep.core.errors import UsageError
from tests.kit.plain_network import FAITHFUL, Margins, exact, with_last_layer
from trainer.network.alexnet import (
    NETWORKS,
    AlexNet,
    NetworkSpec,
    build,
    feature_sides,
    network_spec,
)
from trainer.network.summary import summarise


@pytest.mark.parametrize(
    ("name", "classes", "channels", "parameters"),
    [
        ("paper", 1000, 3, 62_378_344),
        ("paper-two-tower", 1000, 3, 60_965_224),
        ("original-2012", 1000, 3, 60_965_224),
        ("caffe", 1000, 3, 60_965_224),
        ("one-weird-trick", 1000, 3, 61_100_840),
        ("torchvision", 1000, 3, 61_100_840),
        ("torchvision", 2, 3, 57_012_034),
        # The tutorial adds up to 47,686,346 because it takes 256·5·5·4096 + 4096 for
        # 27,140,096; the product is 26,218,496.
        ("tutorial-fashion-mnist", 10, 1, 46_764_746),
        # Ours: a sum made by hand, layer by layer.
        ("miniature", 10, 1, 1_167_850),
    ],
)
def test_parameter_counts_are_those_of_the_sources(
    name: str, classes: int, channels: int, parameters: int
) -> None:
    spec = network_spec(name, classes=classes, channels=channels)
    assert summarise(spec).parameters == parameters


def test_summary_counts_what_the_real_network_has() -> None:
    spec = network_spec("small", classes=7)
    model = build(spec, seed=0)
    assert summarise(spec).parameters == sum(p.numel() for p in model.parameters())


def test_layer_shapes_of_the_paper() -> None:
    sides = dict(feature_sides(NETWORKS["paper"]))
    expected = {"conv1": 55, "pool1": 27, "conv2": 27, "pool2": 13, "conv5": 13, "pool5": 6}
    assert {layer: sides[layer] for layer in expected} == expected


def test_multiply_adds_of_the_first_layer_follow_the_definition() -> None:
    first = summarise(NETWORKS["paper"]).rows[0]
    assert first.output == (96, 55, 55)
    assert first.multiply_adds == 96 * 55 * 55 * 11 * 11 * 3


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_maps_a_batch_to_logits(name: str) -> None:
    spec = network_spec(name, classes=3)
    model = build(spec, seed=1).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, spec.input_size, spec.input_size))
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()


def test_a_too_small_image_is_refused_with_layer_and_arithmetic() -> None:
    with pytest.raises(UsageError, match=r"pool5: its 3×3 kernel does not fit its input of 1"):
        AlexNet(NetworkSpec(input_size=40))


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="torchvision"):
        network_spec("resnet", classes=10)


def test_torchvision_weights_give_torchvision_logits() -> None:
    theirs = torchvision.models.alexnet(num_classes=4).eval()
    ours = AlexNet(network_spec("torchvision", classes=4)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_weights_depend_on_the_seed_and_no_global_generator() -> None:
    spec = NetworkSpec(classes=2, input_size=67, pooled=1, hidden=(8, 8))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build(spec, seed=3).state_dict()
    assert torch.equal(torch.rand(1), expected)
    again, other = build(spec, seed=3).state_dict(), build(spec, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_paper_initialisation_has_its_biases_and_deviation() -> None:
    state = build(NetworkSpec(classes=2, hidden=(64, 64)), seed=0).state_dict()
    convolutions = [key for key in state if key.startswith("features") and key.endswith("bias")]
    assert [float(state[key].mean()) for key in convolutions] == [0, 1, 0, 1, 1]
    assert float(state["features.4.weight"].std()) == pytest.approx(0.01, rel=0.02)
    assert float(state["classifier.6.bias"].abs().max()) == 0


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("paper", "Linear ReLU Dropout Linear ReLU Dropout Linear"),
        ("caffe", "Linear ReLU Dropout Linear ReLU Dropout Linear"),
        ("original-2012", "Linear ReLU Dropout Linear ReLU Dropout Linear"),
        ("torchvision", "Dropout Linear ReLU Dropout Linear ReLU Linear"),
    ],
)
def test_dropout_is_where_each_source_has_it(name: str, order: str) -> None:
    with torch.device("meta"):
        model = build(network_spec(name, classes=10), seed=0)
    leaves = [type(module).__name__ for module in model.classifier.modules()]
    kinds = [kind for kind in leaves if kind in ("Linear", "ReLU", "Dropout")]
    assert " ".join(kinds) == order
    names = [key for key in model.state_dict() if key.startswith("classifier")]
    assert names == [f"classifier.{n}.{what}" for n in (1, 4, 6) for what in ("weight", "bias")]


def test_he_initialisation_begins_at_the_chance_loss() -> None:
    spec = network_spec("small", classes=10)
    logits = build(spec, seed=0)(70 * torch.randn(4, 3, spec.input_size, spec.input_size))
    assert torch.equal(logits, torch.zeros(4, 10))


def test_one_channel_sees_colour_images_in_grey() -> None:
    model = build(replace(network_spec("thumbnail", classes=3, channels=1), init="torch"), 0).eval()
    grey = torch.randn(2, 1, 67, 67, generator=torch.Generator().manual_seed(0))
    tint = torch.tensor([3.0, -1.0, -2.0]).reshape(1, 3, 1, 1)
    with torch.inference_mode():
        expected = model(grey)
        assert torch.allclose(model(grey.expand(2, 3, 67, 67)), expected, atol=1e-5)
        assert torch.allclose(model(grey + tint), expected, atol=1e-5)
        assert not torch.allclose(model(100 + 9 * grey + tint), expected, atol=1e-3)


def test_torch_initialisation_is_that_of_a_new_layer() -> None:
    ours = build(network_spec("torchvision", classes=4), seed=2).state_dict()
    torch.manual_seed(2)
    theirs = torchvision.models.alexnet(num_classes=4).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def kinds(name: str) -> list[str]:
    features = AlexNet(network_spec(name, classes=2)).features
    return [type(layer).__name__ for layer in features]


def test_the_original_code_normalises_before_relu_and_twice() -> None:
    assert kinds("original-2012")[:9] == [
        *("Conv2d", "LocalResponseNorm", "MaxPool2d", "ReLU"),
        *("Conv2d", "ReLU", "LocalResponseNorm", "SpatialResponseNorm", "MaxPool2d"),
    ]
    assert kinds("paper")[:4] == ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]


def test_variants_have_their_own_initialisation() -> None:
    original = build(network_spec("original-2012", classes=2), seed=0).state_dict()
    weights = [key for key in original if key.endswith("weight")]
    deviations = [round(float(original[key].std()), 3) for key in weights[:7]]
    assert deviations == [0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01]
    caffe = build(network_spec("caffe", classes=2), seed=0).state_dict()
    biases = [round(float(caffe[key].mean()), 3) for key in caffe if key.endswith("bias")]
    assert biases == [0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]
    assert round(float(caffe["classifier.1.weight"].std()), 4) == 0.005


def test_batch_normalisation_comes_before_the_relu_or_after_it() -> None:
    before = ["Conv2d", "BatchNorm2d", "ReLU"]
    after = ["Conv2d", "ReLU", "BatchNorm2d"]
    middle = kinds("best-compact")
    assert kinds("compact")[:4] == [*before, "MaxPool2d"]
    assert middle[:4] == [*after, "MaxPool2d"]
    assert middle[-7:-4] == after  # conv4: nothing is pooled
    for name, order in (("compact", "BatchNorm1d ReLU"), ("best-compact", "ReLU BatchNorm1d")):
        dense = [
            type(layer).__name__ for layer in AlexNet(network_spec(name, classes=2)).classifier
        ]
        assert " ".join(dense) == f"Dropout Linear {order} Dropout Linear {order} Linear"


def test_other_images_are_averaged_to_the_dense_layers_input() -> None:
    spec = replace(network_spec("best-compact", classes=2), init="torch", test_size=163)
    model = build(spec, seed=0).eval()
    images = torch.randn(2, 3, 163, 163, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = model.features(model.scale(images))
        assert maps.shape[-1] == 4
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 3).flatten(1)
        assert torch.allclose(model(images), model.classifier(pooled), atol=1e-6)
        assert model(images[:, :, :131, :131]).shape == (2, 2)
        plain = build(replace(spec, test_size=0), seed=0).eval()  # for 131 px, whose maps fit
        maps = plain.features(plain.scale(images[:, :, :99, :99]))
        assert maps.shape[-1] == 2
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 3).flatten(1)
        found = plain(images[:, :, :99, :99])
        assert torch.allclose(found, plain.classifier(pooled), atol=1e-6)


def test_an_unknown_word_in_the_order_is_refused() -> None:
    with pytest.raises(UsageError, match="orders: 'softmax'"):
        AlexNet(NetworkSpec(orders=("relu softmax pool", "relu norm pool")))


LAYOUTS = itertools.cycle((torch.channels_last, torch.contiguous_format))


@pytest.mark.parametrize(("name", "layout"), list(zip(FAITHFUL, LAYOUTS, strict=False)))
def test_logits_and_gradients_are_those_of_the_plain_definition(
    name: str, layout: torch.memory_format
) -> None:
    # All layers as they are, over smaller images.
    spec = replace(NETWORKS[name], classes=7, hidden=(32, 32), input_size=99)
    spec = replace(spec, pooled=feature_sides(spec)[-1][1])
    # float64: where a ReLU or a pooling decides otherwise, two right float32 results differ.
    model = with_last_layer(spec, 3).double().to(memory_format=layout)
    torch.manual_seed(5)
    images = 60 * torch.randn(2, spec.channels, spec.input_size, spec.input_size).double()
    weight = torch.randn(2, 7)
    logits = model(images.to(memory_format=layout))
    torch.autograd.backward((logits * weight).sum())
    expected, gradients = exact(spec, model, images, weight, Margins())
    assert torch.allclose(logits, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    for key, parameter in model.named_parameters():
        theirs = gradients[key]
        assert parameter.grad is not None
        error = float((parameter.grad - theirs).abs().max())
        assert error < 1e-8 * float(theirs.abs().max()), key
