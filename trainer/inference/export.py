"""A checkpoint -> a network for other programs, and a description of its input beside it."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import publish, write_json
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.inference.evaluate import model_of
from trainer.inference.preprocess import Preparation
from trainer.network.alexnet import AlexNet
from trainer.network.lrn import LocalResponseNorm, SpatialResponseNorm

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
"""Name of a format -> the suffix of its files."""

_NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch-export": (),
    "safetensors": ("safetensors",),
}
# Logits of another program differ in the last digits.
TOLERANCE = 1e-3


class PlainResponseNorm(nn.Module):
    """LRN by its definition, in operations that every exporter knows."""

    def __init__(self, norm: LocalResponseNorm | SpatialResponseNorm) -> None:
        super().__init__()
        self.alpha, self.beta, self.k = norm.alpha, norm.beta, norm.k
        self.register_buffer("band", norm.band.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x · (k + α · Σ x² over the neighbours)^-β."""
        band = self.get_buffer("band")
        sums = functional.conv2d(
            x * x, band, padding=band.shape[-1] // 2, groups=x.shape[1] // band.shape[1]
        )
        return x * (self.k + self.alpha * sums).pow(-self.beta)


@dataclass(frozen=True)
class Exported:
    """The files; ``difference`` is the largest of the logits from the checkpoint's, on random
    images (None: the format holds weights alone)."""

    path: Path
    description: Path
    mean: Path | None
    difference: float | None


def export(checkpoint_path: Path, format: str, out: Path | None) -> Exported:
    """Writes the network in ``format`` to ``out`` (None: beside the checkpoint), and beside it
    ``<name>.json`` and, where a mean image is subtracted, ``<name>.mean.npy``.

    The network takes prepared images (N, 3, S, S) float32 and gives logits (N, classes). The
    file is opened again and compared with the checkpoint; ToolError where they differ,
    UsageError for an unknown format or where a package for it is missing.
    """
    if format not in FORMATS:
        raise UsageError(
            "export.format", f"unknown export format {format!r}; choose from {', '.join(FORMATS)}"
        )
    missing = [name for name in _NEEDS[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "export.not_installed",
            f"--format {format} needs {' and '.join(missing)}; install the extra: "
            "pip install 'imagenet-alexnet[export]'",
        )
    checkpoint = load_checkpoint(checkpoint_path)
    model, config = model_of(checkpoint, torch.device("cpu"))
    prepare = Preparation.of(config, checkpoint.stats, model.spec.test_side)
    target = out or checkpoint_path.with_suffix(FORMATS[format])
    if target.resolve() == checkpoint_path.resolve():
        raise UsageError(
            "export.onto_checkpoint", f"{target}: is the checkpoint itself; give another --out"
        )
    example = _example(prepare)
    with torch.no_grad():
        expected = model(example)
    plain = _exportable(model)
    difference = None
    with publish(target) as temporary:
        if format == "safetensors":
            _write_safetensors(model, checkpoint, temporary)
        else:
            (_write_onnx if format == "onnx" else _write_program)(plain, example, temporary)
            run = run_onnx if format == "onnx" else _run_program
            difference = float((run(temporary, example) - expected).abs().max())
            allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
            if not difference <= allowed:
                raise ToolError(
                    "export.differs",
                    f"{target}: gives other logits than {checkpoint_path} (by {difference:.2g}); "
                    "report this, and use --format safetensors meanwhile",
                )
    mean = None
    if prepare.kind in ("image", "centre"):
        mean = target.with_suffix(".mean.npy")
        with publish(mean) as temporary, temporary.open("wb") as file:
            np.save(file, checkpoint.stats.mean, allow_pickle=False)
    description = target.with_name(target.name + ".json")
    value = describe(checkpoint, model, prepare, None if mean is None else mean.name)
    write_json(description, {"file": target.name, "format": format, **value})
    return Exported(target, description, mean, difference)


def describe(
    checkpoint: Checkpoint, model: AlexNet, prepare: Preparation, mean_file: str | None
) -> dict[str, Any]:
    """The description for other programs: input, preparation, output, classes, origin."""
    size, names = model.spec.test_side, checkpoint.classes
    best = checkpoint.progress.get("best") or {}
    known = ("epoch", "val_top1_error", "val_top5_error", "val_loss")
    return {
        "network": checkpoint.config["run"]["network"],
        "input": {
            "name": "images",
            "shape": ["N", 3, size, size],
            "type": "float32",
        },
        "preparation": prepare.described(mean_file, checkpoint.crop_settings.fit),
        "output": {
            "name": "logits",
            "shape": ["N", len(names)],
            "meaning": "softmax makes probabilities of them",
        },
        "classes": [
            {"label": label, "name": name, "title": names.title(label)}
            for label, name in enumerate(names.names)
        ],
        "trained": {
            "best": {name: best[name] for name in known if name in best},
            "statistics": checkpoint.stats_digest,
            "versions": checkpoint.environment.get("versions", {}),
        },
    }


def _example(prepare: Preparation) -> Tensor:
    """Two random images as the network gets them: (2, 3, S, S)."""
    generator = torch.Generator().manual_seed(0)
    side = prepare.size_px
    pixels = torch.randint(0, 256, (2, side, side, 3), generator=generator, dtype=torch.uint8)
    return torch.stack([prepare(one) for one in pixels]).contiguous()


def _exportable(model: AlexNet) -> nn.Module:
    """A copy with plain layers instead of our kernels, channels first."""
    copy = AlexNet(model.spec)
    copy.load_state_dict(model.state_dict())
    for parent in list(copy.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LocalResponseNorm | SpatialResponseNorm):
                setattr(parent, name, PlainResponseNorm(layer))
    # The layers in a row: AlexNet itself takes its own kernels where there are any.
    layers = (copy.grey, copy.scale, copy.features, copy.avgpool, nn.Flatten(1), copy.classifier)
    return nn.Sequential(*layers).eval()


def _write_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        # The exporter's dependencies warn about each other.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Prepared images (N, 3, S, S) through an ONNX file -> its logits (N, classes)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(np.asarray(found))


def _write_program(model: nn.Module, example: Tensor, path: Path) -> None:
    shapes = ({0: torch.export.Dim("N")},)
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    with path.open("wb") as file:
        torch.export.save(program, file)


def _run_program(path: Path, images: Tensor) -> Tensor:
    with path.open("rb") as file:
        program = torch.export.load(file)
    with torch.no_grad():
        found: Tensor = program.module()(images)
    return found


def _write_safetensors(model: AlexNet, checkpoint: Checkpoint, path: Path) -> None:
    from safetensors.torch import save_file

    # Metadata are strings; the description beside the file has the rest.
    metadata = {"network": json.dumps(checkpoint.config["network"])}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata)
