"""Checkpoints: everything a run or a prediction needs, in one file that is safe to open.

A checkpoint is a dict of tensors, strings, numbers, lists and dicts, so that
``torch.load(path, weights_only=True)`` opens it; its ``model`` is the state dict. The comment of
the zip archive is the SHA-256 of the bytes before it, which is checked while the file is read.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import file_digest, publish
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.statistics import STATS_SHAPES, Stats, write_stats

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KIND = "imagenet-alexnet checkpoint"
FORMAT = 2
_REMEDY = "name a last.pt or best.pt that trainer run wrote"
_DIGEST = b"sha256:"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint as read from ``path``.

    ``model`` and ``average`` are state dicts; ``partial`` is the position inside an epoch (None:
    between two); ``stats`` are the statistics of the training images, and ``stats_digest`` is
    the SHA-256 of their ``stats.npz``.
    """

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    average: dict[str, Tensor] | None
    progress: dict[str, Any]
    partial: dict[str, Any] | None
    config: dict[str, Any]
    classes: Classes
    stats: Stats
    stats_digest: str
    environment: dict[str, Any]

    @property
    def crop_settings(self) -> CropSettings:
        """How its images were cropped; the default where that is not stored."""
        try:
            return CropSettings.parse(str(self.config.get("crop")))
        except ValueError:
            return CropSettings(self.stats.size_px)

    def check_finite(self) -> None:
        """ToolError when a weight is infinite or NaN."""
        import torch

        for name, weight in (*self.model.items(), *(self.average or {}).items()):
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise ToolError(
                    "checkpoint.not_finite",
                    f"{self.path}: {name} has weights that are not finite: the run diverged; use "
                    "an earlier checkpoint, or train again with a smaller --lr",
                )


def save_checkpoint(
    path: Path,
    *,
    model: Mapping[str, Tensor],
    optimizer: dict[str, Any] | None,
    average: Mapping[str, Tensor] | None,
    progress: dict[str, Any],
    partial: dict[str, Any] | None,
    config: dict[str, Any],
    classes: Classes,
    stats: Stats,
    environment: dict[str, Any],
) -> None:
    """Publishes a checkpoint at ``path``; the same values give the same bytes.

    Tensors are stored from the CPU, NumPy arrays as tensors. Raises TypeError for
    values that a safe load would refuse, ToolError when the file cannot be written.
    """
    import torch

    payload = _plain(
        {
            "kind": KIND,
            "format": FORMAT,
            "model": model,
            "optimizer": optimizer,
            "average": average,
            "progress": progress,
            "partial": partial,
            "config": config,
            "classes": {"names": list(classes.names), "readable": dict(classes.readable)},
            "stats": _stored_stats(stats),
            "environment": environment,
        },
        "checkpoint",
    )
    try:
        # Through a file object: given a name, torch writes the (temporary) name inside.
        with publish(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(payload, file)
            _append_digest(temporary)
    except (OSError, RuntimeError) as error:
        # torch's zip writer raises a RuntimeError after the OSError of a full disk.
        first = error if isinstance(error, OSError) else error.__context__
        reason = getattr(first, "strerror", None) or str(error).splitlines()[0]
        raise ToolError(
            "checkpoint.write",
            f"{path}: the checkpoint cannot be written ({reason}); free some space or give "
            "another --out",
        ) from error


def _append_digest(path: Path) -> None:
    """Makes the digest of a zip archive without a comment its comment."""
    comment = _DIGEST + file_digest(path).encode()
    with path.open("r+b") as file:
        file.seek(-2, io.SEEK_END)  # the length of the comment, 0
        file.write(len(comment).to_bytes(2, "little") + comment)


def _stored_stats(stats: Stats) -> dict[str, Any]:
    """The statistics as a checkpoint holds them; ``_stats_of`` is the way back.

    Unsigned sums are kept as the signed integers of the same bits: torch has hardly
    any use for unsigned ones.
    """
    import numpy as np

    arrays = {name: getattr(stats, name) for name in STATS_SHAPES}
    stored: dict[str, Any] = {
        name: array.view(np.int64) if array.dtype == np.uint64 else array
        for name, array in arrays.items()
    }
    scalars: dict[str, Any] = {"size": stats.size_px, "count": stats.count, "source": stats.source}
    scalars["coverage"] = list(stats.coverage)
    return stored | scalars | {"digest": _stats_digest(stats)}


def _stats_of(stored: dict[str, Any]) -> Stats:
    """KeyError, TypeError or ValueError where the stored statistics are not whole."""
    import numpy as np
    import torch

    size, arrays = stored["size"], {}
    for name, form in STATS_SHAPES.items():
        shape = tuple(size if side < 0 else side for side in form)
        if not isinstance(stored[name], torch.Tensor) or tuple(stored[name].shape) != shape:
            raise ValueError(f"{name} has not the shape {shape}")
        array = stored[name].cpu().numpy()
        arrays[name] = array.view(np.uint64) if array.dtype == np.int64 else array
    return Stats(
        **arrays,
        count=int(stored["count"]),
        source=str(stored["source"]),
        coverage=tuple(str(part) for part in stored["coverage"]),
    )


def _stats_digest(stats: Stats) -> str:
    """The SHA-256 of the file that ``save_stats`` makes of ``stats``, as manifests have it."""
    buffer = io.BytesIO()
    write_stats(buffer, stats)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _plain(value: Any, where: str) -> Any:
    """``value`` with nothing in it but what ``torch.load(weights_only=True)`` accepts."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # A view would take the whole storage behind it into the file.
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item, where) for item in value)
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    raise TypeError(f"{where}: a {type(value).__name__} has no place in a checkpoint")


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> Checkpoint:
    """Reads a checkpoint without running any code that is in it.

    Raises UsageError when there is no such file or device, ToolError when the file is
    damaged, is not a checkpoint or has another format.
    """
    import torch

    if not path.exists():
        raise UsageError("checkpoint.missing", f"{path}: no such checkpoint; {_REMEDY}")
    if path.is_dir():
        raise UsageError("checkpoint.folder", f"{path}: is a folder, not a checkpoint; {_REMEDY}")
    if torch.device(map_location).type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device.no_cuda", f"{path}: there is no CUDA device to load it onto; use --device cpu"
        )
    data = _read(path)
    try:
        payload = torch.load(data, map_location=map_location, weights_only=True)
    except Exception as error:  # any type may come out of a foreign or damaged archive
        raise ToolError(
            "checkpoint.unsafe",
            f"{path}: is not a checkpoint that can be opened safely; {_REMEDY}",
        ) from error
    _check_kind(path, payload)
    try:
        return _checkpoint_of(path, payload)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ToolError(
            "checkpoint.damaged", f"{path}: the checkpoint is damaged ({reason}); {_REMEDY}"
        ) from error


def _read(path: Path) -> io.BytesIO:
    """The bytes of a checkpoint, whose digest is computed while they are read.

    ToolError unless they are a whole zip archive with the digest in its comment; in archives of
    earlier versions, which have none, the checksums of the members are compared.
    """
    data, digest, size = io.BytesIO(), hashlib.sha256(), path.stat().st_size
    tail = size - len(_DIGEST) - 64 - 2
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk[: max(0, tail - data.tell())])
                data.write(chunk)
    except OSError as error:
        raise ToolError(
            "checkpoint.unreadable", f"{path}: cannot be read ({error.strerror}); {_REMEDY}"
        ) from error
    if bytes(data.getbuffer()[:4]) != b"PK\x03\x04":
        raise ToolError("checkpoint.foreign", f"{path}: is not a checkpoint; {_REMEDY}")
    digest.update(b"\0\0")  # the length of the comment when the digest was computed
    try:
        with zipfile.ZipFile(data) as archive:
            stored = archive.comment
            whole = not archive.testzip() if not stored else stored == _DIGEST + _hex(digest)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        raise ToolError(
            "checkpoint.truncated", f"{path}: the checkpoint is truncated or damaged; {_REMEDY}"
        ) from error
    if not whole:
        raise ToolError(
            "checkpoint.damaged", f"{path}: the checkpoint is damaged (wrong digest); {_REMEDY}"
        )
    data.seek(0)
    return data


def _hex(digest: hashlib._Hash) -> bytes:
    return digest.hexdigest().encode()


def _check_kind(path: Path, payload: object) -> None:
    """ToolError unless ``payload`` is that of a checkpoint in this format."""
    import torch

    if not isinstance(payload, dict) or payload.get("kind") != KIND:
        if isinstance(payload, dict) and any(isinstance(v, torch.Tensor) for v in payload.values()):
            raise ToolError(
                "checkpoint.bare_weights",
                f"{path}: holds bare weights, not a checkpoint; train from them with "
                f"--weights {path}",
            )
        raise ToolError(
            "checkpoint.foreign", f"{path}: is not a checkpoint of this trainer; {_REMEDY}"
        )
    found = payload.get("format")
    if type(found) is not int or found != FORMAT:
        age = "a newer" if type(found) is int and found > FORMAT else "an older"
        raise ToolError(
            "checkpoint.format",
            f"{path}: was written by {age} version (format {found}, this one reads {FORMAT}); "
            "use that version or train again",
        )


def _checkpoint_of(path: Path, payload: dict[str, Any]) -> Checkpoint:
    """The fields, each checked; KeyError, TypeError or ValueError for what is wrong."""
    names = payload["classes"]["names"]
    average, optimizer, partial = (payload[k] for k in ("average", "optimizer", "partial"))
    return Checkpoint(
        path=path,
        model=_state_dict(payload["model"], "model"),
        optimizer=None if optimizer is None else _dictionary(optimizer, "optimizer"),
        average=None if average is None else _state_dict(average, "average"),
        progress=_dictionary(payload["progress"], "progress"),
        partial=None if partial is None else _dictionary(partial, "partial"),
        config=_dictionary(payload["config"], "config"),
        classes=Classes(
            tuple(str(name) for name in names),
            {str(k): str(v) for k, v in payload["classes"]["readable"].items()},
        ),
        stats=_stats_of(payload["stats"]),
        stats_digest=str(payload["stats"]["digest"]),
        environment=_dictionary(payload["environment"], "environment"),
    )


def _dictionary(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is not a dict")
    return value


def _state_dict(value: Any, what: str) -> dict[str, Tensor]:
    import torch

    state = _dictionary(value, what)
    if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise TypeError(f"{what} is not a state dict")
    return state


def check_classes(checkpoint: Checkpoint, classes: Classes) -> None:
    """ToolError unless ``checkpoint`` was trained on ``classes``, in the same order."""
    trained, given = checkpoint.classes.names, classes.names
    if trained == given:
        return
    difference = f"{len(trained)} classes, the beton file has {len(given)}"
    if len(trained) == len(given):
        label = next(
            i for i, pair in enumerate(zip(trained, given, strict=True)) if len({*pair}) > 1
        )
        difference = f"class {label} = {trained[label]}, in the beton file it is {given[label]}"
    raise ToolError(
        "checkpoint.other_classes",
        f"{checkpoint.path}: was trained with {difference}; use a checkpoint with the beton "
        "file's classes, or train on this one (--weights starts from these weights)",
    )
