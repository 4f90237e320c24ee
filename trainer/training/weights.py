"""Weights to start from: our checkpoints, torchvision's state dicts (.pth), safetensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.dataset.classes import Classes
from trainer.checkpoint import Checkpoint, load_checkpoint

TORCHVISION_FILE = "alexnet-owt-7be5be79.pth"
_FETCH = "python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\""


def start_weights(
    source: str, model: Mapping[str, Tensor], classes: Classes
) -> tuple[dict[str, Tensor], list[str]]:
    """``--weights`` and the state dict of the new network -> the tensors to load, and messages.

    The last layer is left out where the classes are others. ToolError when the weights are
    damaged, not finite, or of another network.
    """
    path = _torchvision_file() if source == "torchvision" else Path(source)
    found = read_weights(path)
    trained = None
    if isinstance(found, Checkpoint):
        found.check_finite()
        trained, found = found.classes.names, dict(found.average or found.model)
    last = list(model)[-1].rpartition(".")[0]
    theirs = found.get(f"{last}.weight")
    other = trained is not None and trained != classes.names
    if other or theirs is None or theirs.shape != model[f"{last}.weight"].shape:
        found = {name: t for name, t in found.items() if not name.startswith(f"{last}.")}
    _check(path, found, model, last)
    if theirs is not None and f"{last}.weight" in found:
        return found, [f"{path}: starts from these weights, the last layer included"]
    count = "none" if theirs is None else f"{len(theirs)}"
    return found, [
        f"{path}: starts from these weights; the last layer ({last}) is initialised anew for "
        f"{len(classes)} classes (the file has {count}{', others' if other else ''})"
    ]


def read_weights(path: Path) -> Checkpoint | dict[str, Tensor]:
    """A file of weights -> a checkpoint of ours, or a state dict with torchvision's names."""
    if not path.is_file():
        raise UsageError("weights.missing", f"{path}: no such file of weights (--weights)")
    try:
        if path.suffix == ".safetensors":
            if importlib.util.find_spec("safetensors") is None:
                raise UsageError(
                    "weights.no_safetensors",
                    f"{path}: safetensors is not installed; run pip install safetensors",
                )
            from safetensors.torch import load_file

            return load_file(path)
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # any type may come out of a foreign or damaged file
        raise ToolError(
            "weights.unreadable", f"{path}: cannot be read as weights; give a checkpoint, a state "
            "dict (.pth) or .safetensors",
        ) from error  # fmt: skip
    if isinstance(payload, dict) and "kind" in payload:
        return load_checkpoint(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(payload, dict) and isinstance(payload.get(wrapper), dict):
            payload = payload[wrapper]
    if not isinstance(payload, dict) or not all(isinstance(v, Tensor) for v in payload.values()):
        raise ToolError("weights.no_state_dict", f"{path}: holds no state dict")
    return {str(name).removeprefix("module."): value for name, value in payload.items()}


def _torchvision_file() -> Path:
    """torchvision's weights in torch's cache; UsageError with the command that fetches them."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / TORCHVISION_FILE
    if not path.exists():
        raise UsageError(
            "weights.not_fetched",
            f"--weights torchvision: {path} does not exist; fetch it with: {_FETCH}",
        )
    return path


def _check(path: Path, found: Mapping[str, Tensor], model: Mapping[str, Tensor], last: str) -> None:
    """ToolError unless ``found`` has every tensor of ``model`` but the last layer's, finite."""
    ours = {name: tensor for name, tensor in model.items() if not name.startswith(f"{last}.")}
    wrong = [name for name in found if name not in model]
    wrong += [name for name in ours if name not in found]
    wrong += [name for name in found if name in model and found[name].shape != model[name].shape]
    if wrong:
        raise ToolError(
            "weights.other_network",
            f"{path}: the weights are of another network ({len(wrong)} tensors differ, the first "
            f"is {wrong[0]}); give its --network (torchvision's weights: --preset torchvision)",
        )
    broken = next((name for name, tensor in found.items() if not _finite(tensor)), None)
    if broken is not None:
        raise ToolError("weights.not_finite", f"{path}: {broken} has weights that are not finite")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
