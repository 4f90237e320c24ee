"""What a run leaves behind while it runs: metrics, TensorBoard, where it ran.

``runs/<name>/metrics.jsonl`` has one JSON object per line, ``kind`` being ``epoch`` or
``step``; the TensorBoard event files beside it show the same numbers as curves.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from imagenet_prep.artifacts import ToolError, publish

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS_NAME = "metrics.jsonl"
STEPS_FOLDER = "steps"
_TILE_PX = 40
_GIT_TIMEOUT_S = 10
_TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_top1_error": "top1_error/train",
    "val_top1_error": "top1_error/val",
    "train_top5_error": "top5_error/train",
    "val_top5_error": "top5_error/val",
    "lr": "lr",
    "images_per_second": "images_per_second",
    "wait_share": "wait_share",
    "communication_share": "communication_share",
    "step_share": "step_share",
}


class RunRecorder:
    """Writes ``metrics.jsonl`` and TensorBoard events into ``folder``; a context manager.

    With ``append`` false the folder starts afresh: metrics and event files that an
    earlier run left there are removed. With ``append`` true the run goes on: a torn
    last line is cut, and of what came after epoch ``keep_until_epoch`` (None: keep all)
    the lines are dropped and the events hidden. Raises ToolError when the metrics that
    are to be continued are damaged.

    Events of epochs are numbered by epoch and lie in ``folder``; those of steps are
    numbered by step and lie in ``folder/steps``, because TensorBoard hides events of a
    resumed run by number, whatever their name.
    """

    def __init__(self, folder: Path, *, append: bool, keep_until_epoch: int | None = None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        kept = _trim(folder, keep_until_epoch) if append else []
        if not append:
            _forget(folder)
        last = max((int(row["epoch"]) for row in kept), default=-1)
        self._folder = folder
        self._first_step = 1 + max((int(row["step"]) for row in kept if "step" in row), default=-1)
        self._file: TextIO = (folder / METRICS_NAME).open("a", encoding="utf-8")
        purge = last + 1 if append else None
        self._append = append
        self._writer = SummaryWriter(str(folder), purge_step=purge)
        self._step_writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def step(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Records ``values`` after optimiser step ``step``, counted over the whole run."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._line({"kind": "step", "epoch": epoch, "step": step, **values})
        if self._step_writer is None:
            self._step_writer = SummaryWriter(
                str(self._folder / STEPS_FOLDER),
                purge_step=self._first_step if self._append else None,
            )
        for name, value in values.items():
            self._step_writer.add_scalar(_TAGS.get(name, name), value, step)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Records one epoch; ``row`` has ``epoch`` and what was measured (errors in percent);
        its ``by_rank`` lists shares of each rank, by name.
        """
        self._line({"kind": "epoch", **row})
        for name, tag in _TAGS.items():
            if name in row:
                self._writer.add_scalar(tag, float(row[name]), int(row["epoch"]))
        for name, shares in row.get("by_rank", {}).items():
            for rank, share in enumerate(shares):
                self._writer.add_scalar(f"{name}/rank{rank}", share, int(row["epoch"]))
        self._flush()

    def kernels(self, epoch: int, image: NDArray[np.uint8]) -> None:
        """Shows the first-layer kernels, (H, W, 3), in TensorBoard."""
        self._writer.add_image("first_layer", image, epoch, dataformats="HWC")
        self._flush()

    def sample(self, images: NDArray[np.floating[Any]]) -> None:
        """Shows pictures as the network sees them, (B, 3, S, S), in TensorBoard."""
        self._writer.add_image("sample_batch", sample_grid(images), 0, dataformats="HWC")
        self._flush()

    def graph(self, layers: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
        """Shows the network in TensorBoard: (name, kind, output shape of one picture) in order.

        Written here and not by tracing the network, which takes seconds and is deprecated.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.graph_pb2 import GraphDef

        graph = GraphDef()
        graph.node.add(name="pictures", op="Placeholder")
        for name, kind, shape in layers:
            node = graph.node.add(name=name.replace(".", "/"), op=kind)
            node.input.append(graph.node[-2].name)
            shown = node.attr["_output_shapes"].list.shape.add()
            for size in (-1, *shape):  # -1: any number of pictures
                shown.dim.add(size=size)
        file = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
        file.add_event(Event(graph_def=graph.SerializeToString()))
        self._flush()

    def close(self) -> None:
        """Ends the files; harmless when called again."""
        self._file.close()
        self._writer.close()
        if self._step_writer is not None:
            self._step_writer.close()
            self._step_writer = None

    def _line(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({key: _json_value(v) for key, v in value.items()}) + "\n")
        self._file.flush()

    def _flush(self) -> None:
        self._writer.flush()
        if self._step_writer is not None:
            self._step_writer.flush()


def _json_value(value: Any) -> Any:
    """Numbers of any library -> JSON; what is not finite becomes null, as JSON has no NaN."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``folder/metrics.jsonl`` in order; a torn last line is left out.

    Raises ToolError when the file is missing or another line is damaged.
    """
    return [row for _, row in _read_lines(folder / METRICS_NAME)]


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    remedy = "start the run again under another name"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ToolError(f"{path}: the run's metrics are missing; {remedy}") from None
    except OSError as error:
        reason = error.strerror
        raise ToolError(f"{path}: the run's metrics cannot be read ({reason}); {remedy}") from None
    lines = raw.splitlines(keepends=True)
    rows: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(row, dict) or "epoch" not in row:
                raise ValueError("incomplete")
        except ValueError:
            if number == len(lines):
                break
            raise ToolError(f"{path}: line {number} is damaged; {remedy}") from None
        rows.append((line, row))
    return rows


def _trim(folder: Path, keep_until_epoch: int | None) -> list[dict[str, Any]]:
    """Cuts the metrics to what is to be kept, published only if that changes them."""
    path = folder / METRICS_NAME
    if not path.exists():
        return []
    kept = [
        (line, row)
        for line, row in _read_lines(path)
        if keep_until_epoch is None or int(row["epoch"]) <= keep_until_epoch
    ]
    whole = b"".join(line for line, _ in kept)
    if len(whole) != path.stat().st_size:
        with publish(path) as temporary:
            temporary.write_bytes(whole)
    return [row for _, row in kept]


def _forget(folder: Path) -> None:
    """Removes the metrics and event files of an earlier run, and nothing else."""
    (folder / METRICS_NAME).unlink(missing_ok=True)
    for place in (folder, folder / STEPS_FOLDER):
        for path in place.glob("events.out.tfevents.*"):
            path.unlink()


def kernel_grid(weights: NDArray[np.floating[Any]], columns: int) -> NDArray[np.uint8]:
    """First-layer kernels (K, C, h, w), C being 1 or 3 -> a picture (H, W, 3) uint8.

    Every kernel is divided by its own largest magnitude and shown around mid-grey,
    enlarged by a whole factor to at least 40 px, with white borders of 1 px. What is
    not finite counts as zero. Raises ValueError for other shapes or columns below 1.
    """
    import numpy as np

    if weights.ndim != 4 or weights.shape[1] not in (1, 3) or weights.size == 0 or columns < 1:
        raise ValueError(f"kernels of shape {weights.shape} in {columns} columns are no picture")
    kernels = np.nan_to_num(weights.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    grey = np.rint(127.5 + 127.5 * kernels / np.where(largest > 0, largest, 1.0)).astype(np.uint8)
    tiles = np.broadcast_to(grey.transpose(0, 2, 3, 1), (*grey.shape[:1], *grey.shape[2:], 3))
    factor = max(1, math.ceil(_TILE_PX / min(tiles.shape[1:3])))
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = tiles.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    shape = (1 + rows * (height + 1), 1 + columns * (width + 1), 3)
    picture = np.full(shape, 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top = 1 + index // columns * (height + 1)
        left = 1 + index % columns * (width + 1)
        picture[top : top + height, left : left + width] = tile
    return picture


def sample_grid(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Network inputs (B, 3, S, S) around zero -> a picture (H, W, 3) uint8 of them all.

    Zero, the mean, is mid-grey; the largest magnitude of the batch is black or white.
    """
    import numpy as np

    count, _, side, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    largest = float(np.abs(images).max()) or 1.0
    shown = np.rint(127.5 + 127.5 * images.astype(np.float64) / largest).astype(np.uint8)
    picture = np.full((rows * (side + 1) + 1, columns * (side + 1) + 1, 3), 255, dtype=np.uint8)
    for index, image in enumerate(shown.transpose(0, 2, 3, 1)):
        top = 1 + index // columns * (side + 1)
        left = 1 + index % columns * (side + 1)
        picture[top : top + side, left : left + side] = image
    return picture


def environment_stamp() -> dict[str, Any]:
    """Where and with what a run happens, as JSON values; nothing that names a person or host.

    Versions come from the installed packages' metadata (None: not installed). Flags
    of the processor are those that torch reports.
    """
    import torch

    packages = ("torch", "torchvision", "ffcv", "numpy", "numba", "pillow-simd", "pillow")
    versions = {name: _version(name) for name in ("imagenet-alexnet", *packages)}
    simd = versions["pillow-simd"] is not None
    if versions["pillow-simd" if not simd else "pillow"] is None:
        del versions["pillow-simd" if not simd else "pillow"]
    return {
        "versions": {"python": platform.python_version(), **versions},
        "pillow_simd": simd,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {
            "model": _cpu_model(),
            "count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "logical": os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "flags": _cpu_flags(),
        },
        "threads": torch.get_num_threads(),
        "cuda": _cuda_device(),
        "commit": _commit(Path(__file__).resolve().parent.parent),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name as the system knows it; its architecture where it has none."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> dict[str, bool]:
    """What torch says that the processor has of the units which matter to training."""
    import torch

    names = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
    report = getattr(torch.cpu, "get_capabilities", None)
    known = report() if report is not None else {}
    flags = {name: bool(known[name]) for name in names if name in known}
    probes = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_tile": "_is_amx_tile_supported"}
    for name, probe in probes.items():  # torch before get_capabilities has these alone
        if name not in flags and hasattr(torch.cpu, probe):
            flags[name] = bool(getattr(torch.cpu, probe)())
    return flags | {"bf16": flags.get("avx512_bf16", False) or flags.get("amx_bf16", False)}


def _cuda_device() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    driver = None
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
        driver = found.group(0) if found else None
    return {
        "device": torch.cuda.get_device_name(),
        "count": torch.cuda.device_count(),
        "capability": ".".join(str(part) for part in torch.cuda.get_device_capability()),
        "runtime": torch.version.cuda,
        "driver": driver,
    }


def _commit(checkout: Path) -> str | None:
    """The commit of ``checkout``, with ``+`` if files differ from it; None without git.

    A package installed into somebody else's repository must not report theirs, so the
    folder itself has to be the root of one.
    """
    if not (checkout / ".git").exists():
        return None
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=checkout,
            env=clean,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
