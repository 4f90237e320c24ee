"""Blocks without CUDA: interpreted on the CPU, and compiled for GPUs."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.kit.command import python
from trainer.network import blocks
from trainer.network.alexnet import NETWORKS, AlexNet, build, network_spec, takes_squares
from trainer.network.space_to_depth import depth_to_space, space_to_depth, squares, stem_weight

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(what: str, cache: Path, **environment: str) -> Any:
    """The output of ``interpreted_blocks.py``, in a process of its own."""
    program = Path(__file__).with_name("interpreted_blocks.py")
    return json.loads(python(program, what, TRITON_CACHE_DIR=str(cache), **environment))


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run("values", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="1")


def test_blocks_equal_the_definition_both_ways(values: Any) -> None:
    assert len(values["cases"]) == 32
    for case in values["cases"]:
        # The interpreter cuts bfloat16 off where a GPU rounds: one place of eight bits.
        assert max(case["apart"]) < (2**-6 if case["half"] else 2e-6), case


def test_results_keep_dtype_and_layout(values: Any) -> None:
    assert [case["case"] for case in values["cases"] if not case["alike"]] == []


def test_nan_and_infinity_spread_as_in_the_definition(values: Any) -> None:
    assert values["damaged"] == [True] * 9


def test_networks_of_blocks_equal_plain_ones(tmp_path: Path) -> None:
    found = run("networks", tmp_path, TRITON_INTERPRET="1")
    assert len(found) >= 5
    for each in found:
        assert each["margin"] > 2e-5, each
        assert each["blocks"] >= 4, each
        assert each["parameters"] == [16, 16]
        assert each["logits"] < 1e-5, each
        assert each["gradients"] < 1e-4, each


@pytest.mark.skipif(sys.platform != "linux", reason="Triton assembles on Linux only")
def test_kernels_compile_for_gpus_without_exchanges_in_loops(tmp_path: Path) -> None:
    found = run("machine", tmp_path)
    assert len(found) == 4 + 8
    for kernel in found:
        assert kernel["bytes"] > 0
        assert kernel["vectors"] > 0
        assert kernel.get("spilled", 0) == 0, kernel
        # Only the gradient of biases, stored once, goes through shared memory.
        assert kernel["exchanges"] <= 4, kernel


def test_what_has_no_kernel_goes_through_plain_layers() -> None:
    assert blocks.block_of("relu norm spatial pool", 5, 1e-4, 0.75, 2.0) is None
    assert blocks.block_of("relu norm pool", 3, 1e-4, 0.75, 2.0) is None
    assert blocks.block_of("relu norm pool", 5, 1e-4, 0.75, 0.0) is None
    assert not blocks.takes(torch.zeros(1, 8, 3, 3), 8)  # not channels last
    small = AlexNet(network_spec("small", classes=2))
    assert all(stage.block is None for stage in small._stages)
    assert isinstance(small.features[1], nn.BatchNorm2d)


def test_every_preset_s_networks_have_blocks() -> None:
    with torch.device("meta"):
        for name, spec in NETWORKS.items():
            made = [stage.block is not None for stage in AlexNet(spec)._stages]
            if spec.norm != "batch":
                assert sum(made) >= (4 if name == "original-2012" else 5), name


@pytest.mark.parametrize(
    ("side", "padding", "channels"),
    [(227, 0, 3), (224, 2, 3), (131, 0, 1), (67, 0, 3), (115, 1, 5), (229, 0, 2)],
)
def test_the_first_layer_over_squares_is_the_first_layer(
    side: int, padding: int, channels: int
) -> None:
    generator = torch.Generator().manual_seed(side)
    images = torch.randn(2, channels, side, side, generator=generator).double()
    weight = torch.randn(6, channels, 11, 11, generator=generator).double().requires_grad_()
    cells = space_to_depth(images, padding)
    assert cells.shape == (2, 16 * channels, *[squares(side, padding)] * 2)
    assert cells.is_contiguous(memory_format=torch.channels_last)
    found = functional.conv2d(cells, stem_weight(weight))
    expected = functional.conv2d(images, weight, stride=4, padding=padding)
    assert torch.allclose(found, expected, atol=1e-10)
    mine, theirs = (torch.autograd.grad(y.square().sum(), weight)[0] for y in (found, expected))
    assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("name", ["paper", "torchvision", "small"])
def test_a_network_takes_images_as_squares_too(name: str) -> None:
    spec = replace(NETWORKS[name], classes=2, hidden=(8, 8))
    model = build(spec, 0).double().eval()
    images = torch.randn(1, 3, spec.input_size, spec.input_size).double()
    with torch.inference_mode():
        logits = model(space_to_depth(images, spec.stem_padding))
        assert torch.allclose(logits, model(images), rtol=1e-9, atol=1e-12)


def test_a_square_s_channels_are_rows_columns_then_colours() -> None:
    images = torch.arange(3 * 11 * 11).reshape(1, 3, 11, 11)
    cells = space_to_depth(images)
    assert torch.equal(depth_to_space(cells, 11), images)
    for row, column, colour in ((0, 0, 2), (2, 1, 0), (3, 3, 1)):
        found = cells[0, (row * 4 + column) * 3 + colour, 1, 1]
        assert found == images[0, colour, 4 + row, 4 + column]


def test_networks_that_take_the_loader_s_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.network.blocks.TRITON", True)
    taking = {name for name, spec in NETWORKS.items() if takes_squares(spec)}
    assert {"paper", "paper-two-tower"} <= taking
    for name in taking:
        spec = NETWORKS[name]
        assert spec.norm != "batch"
        assert squares(spec.input_size, spec.stem_padding) == -(-spec.input_size // 4)
    assert not takes_squares(replace(NETWORKS["paper"], stem_padding=2))
    assert not takes_squares(replace(NETWORKS["paper"], input_size=225))
    monkeypatch.setattr("trainer.network.blocks.TRITON", False)
    assert not takes_squares(NETWORKS["paper"])
