"""All stages one after the other, as typed commands: raw images -> crops -> ... -> predictions.

Each stage is a process. Its stderr is shown, and the JSON of its stdout fills one line of the
table at the end. A stage that fails ends the demo with its status. Stages skip what an earlier
demo finished.

Example: python tools/demo.py --src my-images
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM
MODULES = {"imagenet-prep": "imagenet_prep", "trainer": "trainer"}
# Fewer epochs than the preset has: the demo is to end within four minutes on two cores.
EPOCHS = 4
SMALL = {"train": 100, "val": 50, "epochs": 1}
RECORDS = REPOSITORY / "tools" / "records"
# Of each stage: the record of its benchmark, the start of a row's name, and the rival there.
RIVALS = {
    "crop": ("crop", "crop, two workers", "stock Pillow"),
    "stats": ("stats", "stats, two workers", "two NumPy passes"),
    "build": ("build", "build jpeg, two workers", "FFCV DatasetWriter"),
    "train": ("step", "step, ", "tutorials' network, eager float32"),
}


class StageError(Exception):
    """A stage failed: its exit status, and a message if the stage printed none."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Row:
    """A line of the table; ``images`` 0 and ``rate`` 0 are left empty."""

    stage: str
    images: int
    seconds: float
    rate: float
    result: str


def command_line(words: list[str]) -> list[str]:
    """``imagenet-prep ...`` -> the command of this environment, installed or not."""
    script = Path(sys.executable).with_name(words[0])
    start = [str(script)] if script.exists() else [sys.executable, "-m", MODULES[words[0]]]
    return start + words[1:]


@contextlib.contextmanager
def child(
    words: list[str], stderr: int | None = None, patience_s: float = 1.2
) -> Iterator[subprocess.Popen[str]]:
    """Runs a command. After an exception the process is ended; it has ``patience_s`` to end by
    itself."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        command_line(words), stdout=subprocess.PIPE, stderr=stderr, text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        try:
            yield process
        except BaseException:
            # In a terminal, Ctrl-C reaches the stage too: let it end by itself first. A second
            # SIGINT would end a training run at once, without its checkpoint.
            for seconds, signal_number in ((0.3, signal.SIGTERM), (patience_s, signal.SIGKILL)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                    break
                process.send_signal(signal_number)
            process.wait()
            raise


def _pass_on(process: subprocess.Popen[str], listen: Callable[[str], None] | None) -> None:
    """Copies the stderr of a stage line by line, and calls ``listen`` with each line."""
    if process.stderr is not None and listen is not None:
        with contextlib.suppress(ValueError):  # closed, because we end before the stage
            for line in process.stderr:
                sys.stderr.write(line)
                listen(line.rstrip("\n"))


def run_stage(
    words: list[str], listen: Callable[[str], None] | None = None, patience_s: float = 1.2
) -> tuple[dict[str, Any], float]:
    """Prints and runs a command -> the JSON object that it printed, and its seconds.

    ``listen`` is called with each line of its stderr. ``patience_s`` is the time that an
    interrupted stage has to end.
    """
    print(f"\n$ {shlex.join(words)}", flush=True)
    started = time.perf_counter()
    with child(words, None if listen is None else subprocess.PIPE, patience_s) as process:
        pump = threading.Thread(target=_pass_on, args=(process, listen))
        pump.start()
        assert process.stdout is not None
        output = process.stdout.read()
        process.wait()
        pump.join()
    seconds = time.perf_counter() - started
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise StageError(
            128 - process.returncode,
            f"{shlex.join(words[:2])} was ended by {name}; the same command continues",
        )
    if process.returncode:
        raise StageError(process.returncode)
    try:
        value = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        value = None
    if not isinstance(value, dict):
        raise StageError(1, f"{shlex.join(words[:2])} printed no JSON object with --json")
    return value, seconds


def three_images(folder: Path) -> list[str]:
    """One image of the first, the middle and the last class folder."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    chosen = {0, len(classes) // 2, len(classes) - 1} if classes else set()
    found = []
    for place in sorted(chosen):
        images = sorted(
            path
            for path in classes[place].rglob("*")
            if path.is_file() and not path.name.startswith((".", "broken-"))
        )
        found += [str(image) for image in images[:1]]
    return found


def sample_row(raw: Path, small: bool) -> Row:
    """Makes the procedural data set."""
    words = ["imagenet-prep", "sample", "--dst", str(raw), "--json"]
    if small:
        words += ["--train", str(SMALL["train"]), "--val", str(SMALL["val"])]
    value, seconds = run_stage(words)
    images = int(value["images"])
    result = f"{raw}, with {value['broken']} broken files among them"
    return Row("sample", images, seconds, images / seconds, result)


def crop_row(raw: Path, cropped: Path) -> Row:
    """Crops the images."""
    words = ["imagenet-prep", "crop", "--src", str(raw), "--dst", str(cropped), "--json"]
    value, seconds = run_stage(words)
    ok, failed, skipped = (int(value[name]) for name in ("ok", "failed", "skipped"))
    parts = [f"{ok} cropped"] if ok or not skipped else []
    parts += [f"{skipped} already there"] if skipped else []
    parts += [f"{failed} failed"] if failed else []
    rate = float(value["images_per_second"]) if ok else 0.0
    return Row("crop", ok + skipped, seconds, rate, ", ".join(parts))


def stats_row(cropped: Path) -> Row:
    """Computes the statistics of the training crops."""
    plot = cropped.with_name("stats.png")
    words = ["imagenet-prep", "stats", "--src", str(cropped), "--image", str(plot), "--json"]
    value, seconds = run_stage(words)
    images = int(value.get("count", value.get("images", 0)))
    mean = value.get("channel_mean")
    colour = f", mean colour {' '.join(f'{level:.0f}' for level in mean)}" if mean else ""
    return Row("stats", images, seconds, images / seconds, f"{cropped / 'stats.npz'}{colour}")


def build_row(cropped: Path, root: Path) -> Row:
    """Builds the betons."""
    words = ["imagenet-prep", "build", "--src", str(cropped), "--dst", str(root), "--json"]
    value, seconds = run_stage(words)
    names = [name for name in ("train.beton", "val.beton") if (root / name).exists()]
    images = _count_samples(value)
    rate = images / seconds
    return Row("build", images, seconds, rate, ", ".join(str(root / name) for name in names))


def _count_samples(value: Any) -> int:
    """The sum of every ``samples`` in the description of one or more betons."""
    if isinstance(value, dict):
        own = value.get("samples")
        return own if isinstance(own, int) else sum(_count_samples(v) for v in value.values())
    return sum(_count_samples(v) for v in value) if isinstance(value, list) else 0


def train_row(root: Path, run: Path, small: bool) -> Row:
    """Trains a network from scratch."""
    words = ["trainer", "run", "--beton", str(root / "train.beton"), "--preset", "demo"]
    words += ["--out", str(run), "--overwrite", "--json"]
    words += ["--epochs", str(SMALL["epochs"] if small else EPOCHS)]
    value, seconds = run_stage(words)
    best = value["best"]
    images = int(json.loads((root / "train.beton.json").read_text(encoding="utf-8"))["samples"])
    rate = float(best.get("images_per_second", 0.0))
    result = f"best after epoch {best['epoch']}, {run / 'best.pt'}"
    return Row("train", images, seconds, rate, result)


def eval_row(checkpoint: Path, beton: Path) -> Row:
    """Evaluates the best checkpoint on the validation images."""
    words = ["trainer", "eval", "--checkpoint", str(checkpoint), "--beton", str(beton), "--json"]
    value, seconds = run_stage(words)
    top1, top5 = 100 - float(value["top1_error"]), 100 - float(value["top5_error"])
    images = int(value["images"])
    result = f"top-1 accuracy {top1:.1f} %, top-5 {top5:.1f} %"
    return Row("eval", images, seconds, images / seconds, result)


def predict_row(checkpoint: Path, images: list[str]) -> Row:
    """Predicts a few images and prints the predicted classes."""
    words = ["trainer", "predict", "--checkpoint", str(checkpoint), *images, "--json"]
    value, seconds = run_stage(words)
    right = 0
    for one in value["predictions"]:
        first = one["classes"][0] if one.get("classes") else None
        if first is None:
            continue
        right += first["class"] in Path(one["path"]).parts
        print(f"  {one['path']}: {first['name']}, {100 * first['probability']:.1f} %")
    result = f"{right} of {len(images)} correct"
    return Row("predict", len(images), seconds, 0.0, result)


def over_rival(stage: str, records: Path = RECORDS) -> str:
    """The ratio of a stage over another tool, as its benchmark recorded it: ``1.5 x stock
    Pillow``; empty where there is no such record."""
    if stage not in RIVALS:
        return ""
    name, what, rival = RIVALS[stage]
    try:
        rows = json.loads((records / f"bench-{name}.json").read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError):
        return ""
    for row in rows:
        if row["what"].startswith(what) and row["rival"] == rival:
            return f"{row['ratio']:.1f} x {rival.partition(',')[0]}"
    return ""


def table(rows: list[Row], records: Path = RECORDS) -> str:
    """The rows as aligned text with a header."""
    rivals = [over_rival(row.stage, records) for row in rows]
    width = max(map(len, ["recorded speed", *rivals]))
    head = f"{'stage':<8}{'images':>8}{'seconds':>10}{'images/s':>10}  {'recorded speed':<{width}}"
    lines = [f"{head}  result"]
    for row, rival in zip(rows, rivals, strict=True):
        images = f"{row.images:,}" if row.images else ""
        rate = f"{row.rate:,.0f}" if row.rate else ""
        left = f"{row.stage:<8}{images:>8}{row.seconds:>10.1f}{rate:>10}  {rival:<{width}}"
        lines.append(f"{left}  {row.result}")
    total = sum(row.seconds for row in rows)
    lines.append(f"{'total':<8}{'':>8}{total:>10.1f}")
    return "\n".join(lines)


def begin(root: Path, source: str) -> None:
    """Deletes the files that an earlier demo made from another source."""
    mark = root / ".source"
    if mark.exists() and mark.read_text(encoding="utf-8") != source:
        shutil.rmtree(root / "cropped", ignore_errors=True)
        shutil.rmtree(root / "runs" / "demo", ignore_errors=True)
        for split in ("train", "val", "test"):
            for suffix in (".beton", ".beton.json", ".beton.rows", ".stats.npz"):
                (root / (split + suffix)).unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    mark.write_text(source, encoding="utf-8")


def demo(dst: Path, src: Path | None, small: bool) -> None:
    """Runs every stage, then prints the table and the paths of the results. Raises StageError."""
    root = dst / "small" if small else dst
    begin(root, "the procedural sample" if src is None else str(src.resolve()))
    cropped, run = root / "cropped", root / "runs" / "demo"
    rows = []
    if src is None:
        rows.append(sample_row(root / "raw", small))
    raw = src or root / "raw"
    rows += [crop_row(raw, cropped), stats_row(cropped), build_row(cropped, root)]
    rows.append(train_row(root, run, small))
    checkpoint = run / "best.pt"
    validated = (root / "val.beton").exists()
    if validated:
        rows.append(eval_row(checkpoint, root / "val.beton"))
    folder = (root / "raw" if src is None else cropped) / ("val" if validated else "train")
    rows.append(predict_row(checkpoint, three_images(folder)))
    print(f"\n{table(rows)}\n")
    print("recorded speed: over another tool, in tools/records; measure it with make bench\n")
    print(f"curves and first-layer kernels:  {run / 'report.html'}")
    print(f"mean image, colour statistics:   {root / 'stats.png'}")
    print(f"crops; images that failed:       {cropped}; imagenet-prep failures {cropped}")
    print(f"predict your own image:          trainer predict --checkpoint {checkpoint} IMAGE")


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(TERMINATED)


def main(arguments: list[str] | None = None) -> int:
    """Command line -> exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--src", type=Path, help="folder of your images instead of the procedural sample"
    )
    parser.add_argument("--dst", type=Path, default=Path("demo"), help="default: demo")
    parser.add_argument("--small", action="store_true", help="few images, one epoch")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        demo(options.dst, options.src, options.small)
    except StageError as error:
        if str(error):
            print(f"demo: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
