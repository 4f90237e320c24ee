"""The metrics of a run, line by line, and TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from imagenet_prep.core.errors import ToolError
from imagenet_prep.core.files import publish

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

from trainer.report.image_grid import sample_grid

METRICS_NAME = "metrics.jsonl"
STEPS_FOLDER = "steps"
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
