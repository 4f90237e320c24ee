"""The metrics of a run: ``metrics.jsonl`` line by line, and TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import publish
from trainer.report.image_grid import sample_grid

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS_NAME = "metrics.jsonl"
STEPS_FOLDER = "steps"
_TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_top1_error": "top1_error/train",
    "val_top1_error": "top1_error/val",
    "train_top5_error": "top5_error/train",
    "val_top5_error": "top5_error/val",
    **{name: name for name in ("lr", "images_per_second", "wait_share")},
    **{name: name for name in ("communication_share", "step_share", "image_px")},
}


class RunRecorder:
    """Writes ``metrics.jsonl`` and TensorBoard events into ``folder``; a context manager.

    With ``append`` false, metrics and event files of an earlier run in the folder are removed.
    With ``append`` true the run continues: an incomplete last line is cut, and what came after
    epoch ``keep_until_epoch`` (None: keep all) is dropped from the metrics and hidden in
    TensorBoard. Raises ToolError when the metrics to continue are damaged.

    Events of epochs are numbered by epoch and lie in ``folder``; those of steps are numbered
    by step and lie in ``folder/steps``, because TensorBoard hides events of a resumed run by
    number, whatever their name.
    """

    def __init__(self, folder: Path, *, append: bool, keep_until_epoch: int | None = None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        kept = _trim(folder, keep_until_epoch) if append else []
        if not append:
            _remove_earlier_run(folder)
        last_epoch = max((int(row["epoch"]) for row in kept), default=-1)
        last_step = max((int(row["step"]) for row in kept if "step" in row), default=-1)
        self._folder = folder
        self._first_step = last_step + 1 if append else None
        self._file: TextIO = (folder / METRICS_NAME).open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(folder), purge_step=last_epoch + 1 if append else None)
        self._step_writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Records ``values`` after optimiser step ``step``, counted over the whole run."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._line({"kind": "step", "epoch": epoch, "step": step, **values})
        if self._step_writer is None:
            steps = str(self._folder / STEPS_FOLDER)
            self._step_writer = SummaryWriter(steps, purge_step=self._first_step)
        for name, value in values.items():
            self._step_writer.add_scalar(_TAGS.get(name, name), value, step)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Records one epoch; ``row`` has ``epoch`` and the measured values (errors in percent).

        ``by_rank`` lists time fractions of each rank, by name.
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
        """Writes the first-layer kernels, (H, W, 3), to TensorBoard."""
        self._writer.add_image("first_layer", image, epoch, dataformats="HWC")
        self._flush()

    def sample(self, images: NDArray[np.floating[Any]]) -> None:
        """Writes network inputs, (B, 3, S, S), to TensorBoard as one image."""
        self._writer.add_image("sample_batch", sample_grid(images), 0, dataformats="HWC")
        self._flush()

    def graph(self, layers: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
        """Writes the network to TensorBoard: (name, kind, output shape of one image) in order.

        Tracing the network instead would take seconds and is deprecated.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.graph_pb2 import GraphDef

        graph = GraphDef()
        graph.node.add(name="images", op="Placeholder")
        for name, kind, shape in layers:
            node = graph.node.add(name=name.replace(".", "/"), op=kind)
            node.input.append(graph.node[-2].name)
            output = node.attr["_output_shapes"].list.shape.add()
            for size in (-1, *shape):  # -1: any batch size
                output.dim.add(size=size)
        file = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
        file.add_event(Event(graph_def=graph.SerializeToString()))
        self._flush()

    def close(self) -> None:
        """Closes the files; may be called twice."""
        with ExitStack() as closing:
            closing.callback(self._file.close)
            closing.callback(self._writer.close)
            if self._step_writer is not None:
                closing.callback(self._step_writer.close)
                self._step_writer = None

    def _line(self, value: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps({key: _json_value(v) for key, v in value.items()}) + "\n")
            self._file.flush()
        except OSError as error:
            raise ToolError(
                "metrics.write",
                f"{self._folder / METRICS_NAME}: cannot be written ({error.strerror}); free some "
                "space and continue with --resume",
            ) from error

    def _flush(self) -> None:
        for writer in (self._writer, self._step_writer):
            if writer is not None:
                writer.flush()


def _json_value(value: Any) -> Any:
    """Numbers of any library -> JSON; NaN and infinity become null, which JSON lacks."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``folder/metrics.jsonl`` in order, without an incomplete last line.

    Raises ToolError when the file is missing or another line is damaged.
    """
    return [row for _, row in _read_lines(folder / METRICS_NAME)]


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    remedy = "start the run again under another name"
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ToolError(
            "metrics.missing" if isinstance(error, FileNotFoundError) else "metrics.unreadable",
            f"{path}: cannot be read ({error.strerror}); {remedy}",
        ) from None
    rows: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(row, dict) or "epoch" not in row:
                raise ValueError("incomplete")
        except ValueError:
            if number == len(lines):
                break
            raise ToolError(
                "metrics.damaged", f"{path}: line {number} is damaged; {remedy}"
            ) from None
        rows.append((line, row))
    return rows


def _trim(folder: Path, keep_until_epoch: int | None) -> list[dict[str, Any]]:
    """Drops incomplete lines and later epochs; writes the file only if that changes it."""
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


def _remove_earlier_run(folder: Path) -> None:
    """Removes the metrics and event files of an earlier run, and nothing else."""
    (folder / METRICS_NAME).unlink(missing_ok=True)
    for place in (folder, folder / STEPS_FOLDER):
        for path in place.glob("events.out.tfevents.*"):
            path.unlink()
