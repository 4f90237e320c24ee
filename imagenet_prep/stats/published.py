"""A file of statistics, ours or somebody else's -> what it says, in levels of 0-255.

Read are our own ``stats.npz``, and what tutorials and published models carry about: mean
images and channel means (``.npy``, ``.npz``, ``.pt``, JSON, text), with the channels first or
last, as 0-1 or 0-255; standard deviations; and the directions of colour with eigenvalues or
standard deviations in either order. Nothing in such a file is executed.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.statistics import load_stats
from imagenet_prep.stats.compare import Reference, Values, reference_of

_KINDS = ".npz, .npy, .pt, .json, .txt or .csv"
_REMEDY = f"name a statistics file of imagenet-prep, or published figures as {_KINDS}"
_MOST_BYTES = 256 << 20
_OURS = frozenset(("format", "products", "coverage", "mean", "sum"))


def read_references(path: Path) -> list[Reference]:
    """What a file says: one Reference for each mean image in it, and one for what is left.

    Raises ToolError when the file is missing, damaged, too large or has nothing of the kind.
    """
    if path.is_dir():
        raise ToolError(f"{path}: is a folder; {_REMEDY}")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ToolError(f"{path}: is too large to be statistics; {_REMEDY}")
        arrays = _READERS.get(path.suffix.lower(), _read_unknown)(path)
    except FileNotFoundError:
        raise ToolError(f"{path}: no such file; {_REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ToolError(f"{path}: cannot be read as statistics ({reason}); {_REMEDY}") from None
    if arrays.keys() >= _OURS:
        return [reference_of(load_stats(path), path.name)]
    references = _sorted_out(arrays, path.name)
    if not references:
        raise ToolError(f"{path}: has neither means nor directions of colour; {_REMEDY}")
    return references


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as handle, zipfile.ZipFile(handle) as archive:
            return {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from None


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_npy(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as handle:
        return {path.stem: np.lib.format.read_array(handle, allow_pickle=False)}


def _read_json(path: Path) -> dict[str, NDArray[Any]]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        value = {path.stem: value}
    lists = {name: item for name, item in value.items() if isinstance(item, list)}
    return {name: np.asarray(item, np.float64) for name, item in lists.items()}


def _read_text(path: Path) -> dict[str, NDArray[Any]]:
    text = path.read_text(encoding="utf-8")
    rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    return {path.stem: np.array(rows, np.float64).squeeze()}


def _read_torch(path: Path) -> dict[str, NDArray[Any]]:
    import pickle

    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("holds more than tensors") from None
    items = value.items() if isinstance(value, dict) else [(path.stem, value)]
    tensors = {str(name): item for name, item in items if isinstance(item, torch.Tensor)}
    return {name: item.detach().numpy() for name, item in tensors.items()}


def _read_unknown(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb"):
        raise ValueError(f"is not {_KINDS}")


_READERS: dict[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".json": _read_json,
    ".txt": _read_text,
    ".csv": _read_text,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def _sorted_out(arrays: dict[str, NDArray[Any]], name: str) -> list[Reference]:
    """Named arrays -> references, by what their names and shapes say they are."""
    images: list[Reference] = []
    figures: dict[str, Values] = {}
    notes: list[str] = []
    for key, raw in arrays.items():
        if raw.dtype.kind not in "fiu" or raw.size == 0:
            continue
        array = np.squeeze(raw.astype(np.float64))
        if not np.isfinite(array).all():
            raise ToolError(f"{name}: {key} has values that are not finite; {_REMEDY}")
        if array.ndim == 3:
            image = _mean_image(array, key)
            images += [image] if image is not None else []
        else:
            _take_figures(key, array, figures, notes)
    if figures:
        # The directions may be columns or rows: they stay as they are, beside their order.
        order = np.argsort(figures["stdev"]) if "stdev" in figures else np.arange(3)
        if "stdev" in figures:
            figures["stdev"] = figures["stdev"][order]
        images.append(Reference(name, **figures, order=order, notes=tuple(notes)))
    return images


def _mean_image(array: Values, key: str) -> Reference | None:
    notes = []
    if array.shape[0] == 3 and array.shape[1] == array.shape[2] > 3:
        array = array.transpose(1, 2, 0)
        notes.append("channels first")
    if array.shape[0] != array.shape[1] or array.shape[2] != 3:
        return None
    return Reference(key, mean=_to_levels(array, 1, notes, "values"), notes=tuple(notes))


def _to_levels(array: Values, power: int, notes: list[str], what: str) -> Values:
    """Values of the scale 0-1 -> levels; ``power`` 2 for variances."""
    if np.abs(array).max() > 1:
        return array
    notes.append(f"{what} taken as of the scale 0-1")
    return array * 255.0**power


def _take_figures(key: str, array: Values, figures: dict[str, Values], notes: list[str]) -> None:
    """Puts one array to the figures that it is, if it is any."""
    word = key.lower()
    of_colour = any(part in word for part in ("eig", "color", "colour", "pca", "values"))
    if array.shape == (3,):
        if of_colour and any(part in word for part in ("std", "dev", "sd")):
            figures["stdev"] = _to_levels(array, 1, notes, key)
        elif of_colour or "var" in word:
            variance = np.maximum(_to_levels(array, 2, notes, key), 0)
            notes.append(f"{key} taken as variances")
            figures["stdev"] = np.sqrt(variance)
        elif any(part in word for part in ("std", "dev", "sd")):
            figures["channel_std"] = _to_levels(array, 1, notes, key)
        else:
            figures["channel_mean"] = _to_levels(array, 1, notes, key)
    elif array.shape == (3, 3) and np.abs(array @ array.T - np.eye(3)).max() < 0.02:
        figures["vectors"] = array
    elif array.shape == (3, 3) and np.allclose(array, array.T, rtol=1e-4):
        values, figures["vectors"] = np.linalg.eigh(_to_levels(array, 2, notes, key))
        figures["stdev"] = np.sqrt(np.maximum(values, 0))
        notes.append(f"directions from {key}, taken as a covariance")
