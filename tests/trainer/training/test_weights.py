"""Runs that start from weights: our checkpoints, state dicts of torchvision, other classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from imagenet_prep.core.errors import quiet
from imagenet_prep.dataset.classes import Classes
from tests.kit.errors import fails
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import presets
from trainer.network.alexnet import NETWORKS, build, network_spec
from trainer.training.optim import make_optimizer
from trainer.training.run import train
from trainer.training.weights import TORCHVISION_FILE, start_weights

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample


def run(sample: Sample, folder: Path, **changes: Any) -> tuple[Checkpoint, list[str]]:
    """Trains one epoch -> last.pt and the messages."""
    config = dataclasses.replace(
        presets.preset("small"), network="tiny", epochs=1, batch_size=25, crop_size=56, lr=1e-9,
        warmup_epochs=0.0, average=0.0, weight_decay=0.0, device="cpu", precision="float32", jobs=1,
        **changes,
    )  # fmt: skip
    messages: list[str] = []
    train(
        config, sample.path, folder, resume=False, report=lambda _: None, progress=quiet,
        notice=messages.append,
    )  # fmt: skip
    return load_checkpoint(folder / "last.pt"), messages


def last_of(model: Any) -> str:
    return str(list(model)[-1]).rpartition(".")[0]


@pytest.fixture
def four_classes(small_beton: Sample, tiny_network: str) -> dict[str, torch.Tensor]:
    """The state dict of the tiny network for four classes; the beton file has three."""
    return build(network_spec(tiny_network, classes=4), 7).state_dict()


@pytest.mark.parametrize("form", ["checkpoint", "pth", "wrapped", "safetensors"])
def test_weights_of_another_class_count_get_a_new_last_layer(
    small_beton: Sample, four_classes: dict[str, torch.Tensor], tmp_path: Path, form: str
) -> None:
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "checkpoint":
        run(small_beton, tmp_path / "first")
        values = torch.load(tmp_path / "first" / "last.pt", weights_only=True)
        values["model"] = four_classes
        values["classes"]["names"] = ["a", "b", "c", "d"]
        torch.save(values, path)
    elif form == "safetensors":
        save_file(four_classes, path)
    elif form == "wrapped":
        torch.save({"state_dict": {f"module.{k}": v for k, v in four_classes.items()}}, path)
    else:
        torch.save(four_classes, path)
    found, messages = run(small_beton, tmp_path / "run", weights=str(path), freeze=("features",))
    last = last_of(four_classes)
    assert f"the last layer ({last}) is initialised anew for 3 classes" in messages[0]
    assert found.model[f"{last}.weight"].shape[0] == 3
    for name, tensor in four_classes.items():
        if name.startswith("features") and name.endswith(("weight", "bias")):
            assert torch.equal(found.model[name], tensor), name
    hidden = "classifier.1.weight"
    assert torch.allclose(found.model[hidden], four_classes[hidden], atol=1e-6)


def test_weights_of_the_same_classes_keep_the_last_layer(
    small_beton: Sample, tiny_network: str, tmp_path: Path
) -> None:
    first, _ = run(small_beton, tmp_path / "first", seed=3)
    path = tmp_path / "first" / "last.pt"
    found, messages = run(small_beton, tmp_path / "second", weights=str(path))
    assert "the last layer included" in messages[0]
    last = f"{last_of(first.model)}.weight"
    assert torch.allclose(found.model[last], first.model[last], atol=1e-6)
    # Another class list of the same length is another task.
    other, messages = start_weights(str(path), first.model, Classes(("x", "y", "z"), {}))
    assert last not in other
    assert "others" in messages[0]


def test_torchvision_weights_come_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    ours = build(network_spec("torchvision", classes=2), 0).state_dict()
    two = Classes(("cat", "dog"), {})
    with fails("weights.not_fetched", TORCHVISION_FILE, "python -c", usage=True):
        start_weights("torchvision", ours, two)
    theirs = alexnet().state_dict()
    path = tmp_path / "hub" / "checkpoints" / TORCHVISION_FILE
    path.parent.mkdir(parents=True)
    torch.save(theirs, path)
    found, messages = start_weights("torchvision", ours, two)
    assert set(theirs) - set(found) == {"classifier.6.weight", "classifier.6.bias"}
    assert all(torch.equal(found[name], theirs[name]) for name in found)
    assert "for 2 classes (the file has 1000)" in messages[0]


def test_weights_that_do_not_fit_are_refused(
    four_classes: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    three = Classes(("ant", "bee", "cat"), {})
    path = tmp_path / "weights.pt"
    for code, values in (
        ("weights.other_network", {"features.0.weight": torch.zeros(1)}),
        ("weights.no_state_dict", [1, 2]),
        ("weights.not_finite", four_classes | {"features.0.bias": torch.full((8,), torch.inf)}),
    ):
        torch.save(values, path)
        with fails(code, str(path)):
            start_weights(str(path), four_classes, three)
    path.write_text("text")
    with fails("weights.unreadable"):
        start_weights(str(path), four_classes, three)
    with fails("weights.missing", usage=True):
        start_weights(str(tmp_path / "lost.pt"), four_classes, three)


def test_the_backbone_learns_at_a_rate_of_its_own(tiny_network: str) -> None:
    model = build(dataclasses.replace(NETWORKS[tiny_network], classes=3), 0)
    groups = make_optimizer(
        model, "sgd", momentum=0.9, weight_decay=0.0, bias_rate=2.0, backbone_rate=0.1
    ).param_groups
    rates = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    last = last_of(model.state_dict())
    for name, parameter in model.named_parameters():
        rate = 1.0 if name.startswith(f"{last}.") else 0.1
        assert rates[id(parameter)] == pytest.approx(rate * (2.0 if parameter.ndim <= 1 else 1.0))
