"""Exported networks: other programs give the checkpoint's logits, with inputs as in the JSON."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from imagenet_prep.core.errors import ToolError, UsageError
from trainer.checkpoint import load_checkpoint
from trainer.config import presets
from trainer.data import find_data
from trainer.distributed.world import World
from trainer.inference import export as exporting
from trainer.inference.evaluate import model_of
from trainer.inference.export import Exported, export, run_onnx
from trainer.inference.preprocess import Preparation
from trainer.network.alexnet import NETWORKS, AlexNet, NetworkSpec, network_spec
from trainer.training.state import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.trainer.conftest import Sample

CPU = torch.device("cpu")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


onnx = needs("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def normed() -> Iterator[str]:
    """A small network with both response normalisations, pooling first and groups."""
    NETWORKS["normed"] = NetworkSpec(
        input_size=67,
        test_size=99,
        widths=(8, 8, 8, 8, 8),
        groups=(1, 2, 1, 2, 2),
        hidden=(16, 16),
        pooled=1,
        orders=("norm pool relu", "relu norm spatial pool"),
        lrn_alpha=1e-2,
        init="he",
    )
    yield "normed"
    del NETWORKS["normed"]


@pytest.fixture(scope="module")
def checkpoint(small_beton: Sample, normed: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt of a network whose last layer is not zeros."""
    config = dataclasses.replace(
        presets.preset("small"), network=normed, crop_size=56, device="cpu", average=0.0
    )
    session = Session(config, find_data(small_beton.path), World())
    torch.nn.init.normal_(session.model.classifier[-1].weight, std=0.1)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    session.save(path, whole=False)
    return path


def by_the_description(done: Exported, pixels: Any) -> torch.Tensor:
    """(S, S, 3) uint8 -> the network's input, by nothing but the JSON and the mean file."""
    value = json.loads(done.description.read_text())["preparation"]
    crop, resample = value["crop"], value["resample"]
    at = slice(crop["from"], crop["to"])
    mean = (
        np.load(done.description.parent / value["mean"]["file"])
        if value["mean"]["kind"] == "image"
        else np.array(value["mean"]["levels"], np.float32)
    )
    levels = pixels.astype(np.float32) - mean
    if value["divide_by"]:
        levels = levels / np.array(value["divide_by"], np.float32)
    image = torch.from_numpy(levels[at, at]).permute(2, 0, 1)[None]
    if resample:
        size = (resample["size"], resample["size"])
        image = functional.interpolate(image, size=size, mode="bilinear", antialias=True)
    return image.contiguous()


@onnx
def test_onnx_on_described_inputs_gives_the_checkpoints_logits(
    checkpoint: Path, small_beton: Sample, tmp_path: Path
) -> None:
    done = export(checkpoint, "onnx", tmp_path / "net.onnx")
    stored = load_checkpoint(checkpoint)
    model, config = model_of(stored, CPU)
    prepare = Preparation.of(config, stored.stats, model.spec.test_side)
    with torch.no_grad():
        expected = torch.cat(
            [model(prepare(torch.from_numpy(p))[None]) for p in small_beton.images[:3]]
        )
    inputs = torch.cat([by_the_description(done, p) for p in small_beton.images[:3]])
    found = run_onnx(done.path, inputs)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-3
    assert done.difference is not None
    value = json.loads(done.description.read_text())
    assert [one["name"] for one in value["classes"]] == ["ant", "bee", "cat"]
    assert value["input"]["shape"] == ["N", 3, 99, 99]
    assert value["preparation"]["colour"] == "RGB"
    assert {path.name for path in tmp_path.iterdir()} == {
        "net.onnx", "net.onnx.json", "net.mean.npy",
    }  # fmt: skip


def test_torch_export_gives_the_checkpoints_logits(checkpoint: Path, tmp_path: Path) -> None:
    done = export(checkpoint, "torch-export", tmp_path / "net.pt2")
    assert done.difference is not None
    assert done.difference < 1e-3
    with done.path.open("rb") as file:
        program = torch.export.load(file)
    assert program.module()(torch.zeros(5, 3, 99, 99)).shape == (5, 3)


@needs("safetensors")
def test_safetensors_hold_the_weights_and_the_description(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    done = export(checkpoint, "safetensors", tmp_path / "net.safetensors")
    with safe_open(done.path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["network"])["classes"] == 3
    for name, tensor in load_checkpoint(checkpoint).model.items():
        assert torch.equal(weights[name], tensor)
    assert done.difference is None


def test_a_missing_package_is_an_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exporting._NEEDS, "onnx", ("onnx_of_tomorrow",))
    with pytest.raises(UsageError, match=r"needs onnx_of_tomorrow.*imagenet-alexnet\[export\]"):
        export(checkpoint, "onnx", tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="choose from onnx"):
        export(checkpoint, "tflite", tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_gives_other_logits_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.PlainResponseNorm, "forward", lambda self, x: x)
    with pytest.raises(ToolError, match="gives other logits"):
        export(checkpoint, "torch-export", tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


@onnx
def test_the_2012_network_goes_through_onnx_on_real_images(
    shared_data: Path, tmp_path: Path
) -> None:
    paths = sorted((shared_data / "imagenette" / "val").rglob("*.JPEG"))[:2]
    spec = dataclasses.replace(network_spec("original-2012", classes=10), hidden=(64, 64))
    model = AlexNet(spec).eval()
    arrays = [np.asarray(Image.open(path).convert("RGB").resize((227, 227))) for path in paths]
    levels = torch.stack([torch.tensor(a).permute(2, 0, 1).float() - 118 for a in arrays])
    path = tmp_path / "net.onnx"
    exporting._write_onnx(exporting._exportable(model), levels, path)
    with torch.no_grad():
        expected = model(levels)
    assert torch.allclose(run_onnx(path, levels), expected, rtol=1e-4, atol=1e-4)
