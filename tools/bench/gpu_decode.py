"""The JPEG decoder alone on a CUDA device: its pixels beside Pillow's, images a second, its parts.

    python tools/bench/gpu_decode.py --crops FOLDER [--json FILE] [--smoke]

FOLDER has JPEGs of one size, in it or below it. Parts, most valuable first, each printed and saved
when it is done: pixels; JPEG to bfloat16 227 in 4x4 space-to-depth at batch 256 and 1024, copies
from pinned memory on two streams; the kernels by themselves; torchvision's ``decode_jpeg`` on the
device; the index on the CPU; other variants. ``--smoke`` needs no device: with
NUMBA_ENABLE_CUDASIM=1 two images of 24 px in the simulator. Needs torch, numba, numba-cuda, NumPy
and Pillow, less than 90 s.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imagenet_prep.jpeg import cuda as jpeg
from imagenet_prep.jpeg.index import Index, index_images, join
from tools.bench.gpu_loader import Lines

LAPS, ROUNDS = 5, 8
NUMPY = {"uint8": np.uint8, "float32": np.float32, "float16": np.float16, "bfloat16": np.int16}


class Data:
    """``count`` images, the crops of a folder again and again, in memory that a device copies."""

    def __init__(self, folder: Path, count: int, small: bool, device: torch.device) -> None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        crops = [path.read_bytes() for path in paths[:300]]
        if small:
            crops = [_cut(crop, 24) for crop in crops[:2]]
        self.own, self.device = crops, device
        self.many = [crops[number % len(crops)] for number in range(count)]
        sizes = np.array([len(crop) for crop in self.many], np.int64)
        self.sizes, self.begins = sizes, np.cumsum(sizes) - sizes
        data = np.zeros(int(sizes.sum()) // 4 * 4 + 8, np.uint8)
        data[: int(sizes.sum())] = np.frombuffer(b"".join(self.many), np.uint8)
        self.data, self.words = data, self.held(data.view(np.int32))
        self.frames = [_pixels(crop) for crop in crops]
        self.side = len(self.frames[0])
        self.index: Index = index_images(data, self.begins, sizes)
        self.out_px = self.side - 29 if self.side > 100 else self.side - 5

    def held(self, values: NDArray[Any]) -> torch.Tensor:
        """Pinned memory with these values."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def there(self, values: NDArray[Any]) -> torch.Tensor:
        """The same on the device."""
        return torch.from_numpy(np.array(values)).to(self.device)

    def windows(self, count: int, size: int) -> NDArray[np.int32]:
        """A random window of ``size`` pixels of each image, every other one mirrored."""
        rng = np.random.default_rng(0)
        y, x = rng.integers(0, self.side - size + 1, (2, count))
        same = np.full(count, size)
        return np.stack([y, x, same, same, np.arange(count) % 2], 1).astype(np.int32)


def _pixels(data: bytes) -> NDArray[np.uint8]:
    import io

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _cut(data: bytes, side: int) -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(_pixels(data)[:side, :side]).save(file, "JPEG", quality=90)
    return file.getvalue()


class Lane:
    """A stream with its own memory for batches of ``count`` images."""

    def __init__(self, data: Data, count: int) -> None:
        self.data, self.count, device = data, count, data.device
        cuda: Any = torch.cuda
        self.stream: Any = cuda.Stream(device) if device.type == "cuda" else None
        self.on: Any = 0 if self.stream is None else jpeg.as_stream(self.stream)
        index, longest = data.index, int(data.sizes.max())
        shared = jpeg.tables(index, lambda values: self.array(self.there(values)))
        self.decoder = jpeg.Decoder(index, shared, count, self.allocate)
        self.words = torch.zeros(count * longest // 4 + 8, dtype=torch.int32, device=device)
        self.small = {
            "begins": torch.zeros(count, dtype=torch.int64, device=device),
            "jobs": torch.zeros((count, 8), dtype=torch.int32, device=device),
            "windows": torch.zeros((count, 5), dtype=torch.int32, device=device),
            "shift": torch.zeros((count, 3), dtype=torch.float32, device=device),
        }
        self.status = torch.zeros(count, dtype=torch.int32, device=device)
        positions, predictors = self.there(index.positions), self.there(index.predictors)
        small = {name: self.array(tensor) for name, tensor in self.small.items()}
        self.batch = jpeg.Batch(
            self.array(self.words).view(np.uint32), small["begins"], small["jobs"],
            self.array(positions), self.array(predictors), self.array(self.status),
        )  # fmt: skip
        mean = np.random.default_rng(1).uniform(90, 150, (data.side, data.side, 3))
        self.mean = mean.astype(np.float32)
        self.views = jpeg.Views(
            small["windows"], 1, self.array(self.there(self.mean)), False, small["shift"],
            self.array(self.there(np.ones(3, np.float32))),
        )  # fmt: skip
        self.outs: dict[tuple[str, str, int], Any] = {}
        synchronize()

    def array(self, tensor: torch.Tensor) -> Any:
        return tensor.numpy() if self.stream is None else jpeg.as_array(tensor)

    def there(self, values: NDArray[Any]) -> torch.Tensor:
        signed = values.view(f"i{values.itemsize}") if values.dtype.kind == "u" else values
        return self.data.there(signed)

    def allocate(self, count: int, dtype: Any) -> Any:
        kind = np.dtype(dtype)
        same = kind if kind.kind == "f" else np.dtype(f"i{kind.itemsize}")
        made = torch.zeros(count, dtype=getattr(torch, same.name), device=self.data.device)
        return self.array(made).view(kind)

    def jobs(self, first: int, px: int) -> dict[str, torch.Tensor]:
        """What is copied of the images from ``first`` on, in pinned memory."""
        data, where = self.data, slice(first, first + self.count)
        low = int(data.begins[first]) // 4
        high = (int(data.begins[where][-1] + data.sizes[where][-1]) + 3) // 4
        jobs = data.index.jobs(np.arange(first, first + self.count)).jobs
        jobs[:, 5] = data.index.images["row"][where]
        return {
            "words": data.words[low:high],
            "begins": data.held(data.begins[where] - 4 * low),
            "jobs": data.held(jobs),
            "windows": data.held(data.windows(self.count, px)),
            "shift": data.held(np.zeros((self.count, 3), np.float32)),
        }

    def copy(self, held: dict[str, torch.Tensor]) -> None:
        """Starts the copies of a batch."""
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            self.words[: len(held["words"])].copy_(held["words"], non_blocking=True)
            for name, tensor in self.small.items():
                tensor.copy_(held[name], non_blocking=True)

    def decode(self) -> None:
        self.decoder.decode(self.batch, self.on)

    def view(self, px: int, dtype: str, layout: str, *, resized: bool = False) -> Any:
        """Starts the making of views -> the array that they are in."""
        key = (dtype, layout, px)
        if key not in self.outs:
            self.outs[key] = self.allocate(self.count * jpeg.elements(px, layout), NUMPY[dtype])
        out = self.outs[key]
        self.decoder.view(
            self.batch, self.views, out, px, dtype, layout, resized=resized, stream=self.on
        )
        return out


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def host(array: Any, count: int) -> NDArray[Any]:
    synchronize()
    values = array.copy_to_host() if hasattr(array, "copy_to_host") else array
    return np.asarray(values).reshape(count, -1)


def pixels(lines: Lines, data: Data) -> None:
    """Elements that differ from Pillow's pixels; RuntimeError where there are any."""
    count = len(data.own)
    lane = Lane(data, count)
    lane.copy(lane.jobs(0, data.side))
    lane.decode()
    found = host(lane.view(data.side, "uint8", "channels_last"), count)
    wrong = 0
    for number, frame in enumerate(data.frames):
        want = frame[:, ::-1] if number % 2 else frame
        wrong += int((found[number] != want.ravel()).sum())
    status = int((lane.status != 0).sum())
    lines.add(f"{count} images, elements that differ from Pillow's", wrong, "", statuses=status)
    none_wrong(wrong + status)
    px = data.out_px
    windows = data.windows(count, px)
    lane.copy(lane.jobs(0, px))
    lane.decode()
    found = host(lane.view(px, "float32", "channels_last"), count)
    wrong = 0
    for number, (y, x, _, _, mirror) in enumerate(windows):
        cut = data.frames[number][y : y + px, x : x + px] - lane.mean[y : y + px, x : x + px]
        want = (cut[:, ::-1] if mirror else cut).astype(np.float32)
        wrong += int((found[number] != want.ravel()).sum())
    lines.add(f"float32 {px}, less a mean image", wrong, "")
    none_wrong(wrong)


def none_wrong(count: int) -> None:
    """Ends a part that has found something wrong."""
    if count:
        raise RuntimeError(f"{count} are wrong")


def end_to_end(lines: Lines, data: Data, count: int) -> None:
    """Copies and kernels on two streams."""
    px = data.out_px
    lanes = [Lane(data, count) for _ in range(2)]
    held = [lanes[0].jobs(at, px) for at in range(0, len(data.many) - count + 1, count)]
    laps = []
    for _ in range(LAPS):
        synchronize()
        start = time.perf_counter()
        rounds = max(2, ROUNDS * 1024 // count // len(held)) if count > 8 else 1
        for turn in range(rounds):
            for number, job in enumerate(held):
                lane = lanes[(number + turn * len(held)) % 2]
                lane.copy(job)
                lane.decode()
                lane.view(px, "bfloat16", "space_to_depth")
        queued = time.perf_counter() - start
        synchronize()
        laps.append((time.perf_counter() - start, queued))
    seconds, queued = (statistics.median(lap) for lap in zip(*laps[1:], strict=True))
    images = rounds * len(held) * count
    wrong = sum(int((lane.status != 0).sum()) for lane in lanes)
    lines.add(
        f"batch {count}, two streams, JPEG to bfloat16 {px} space-to-depth", images / seconds,
        "images/s", host_ms_a_batch=round(1e3 * queued * count / images, 3),
        wrong=wrong,
    )  # fmt: skip
    none_wrong(wrong)


def median_ms(stream: Any, run: Callable[[], object], repeats: int = 10) -> float:
    """The device's time for what ``run`` starts; without one, the host's."""
    if stream is None:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    found: list[float] = []
    cuda: Any = torch.cuda
    ballast = torch.zeros(1 << 28, dtype=torch.int64, device="cuda")
    for number in range(repeats + 2):
        marks = [cuda.Event(enable_timing=True) for _ in range(2)]
        with torch.cuda.stream(stream):  # the host queues all of it while this runs
            ballast.zero_()
        marks[0].record(stream)
        run()
        marks[1].record(stream)
        stream.synchronize()
        if number > 1:
            found.append(marks[0].elapsed_time(marks[1]))
    return statistics.median(found)


def parts(lines: Lines, data: Data, count: int) -> None:
    """The kernels by themselves; ``decode`` is Huffman and IDCT."""
    lane = Lane(data, count)
    held = lane.jobs(0, data.out_px)
    lane.copy(held)
    lane.decode()

    def line(what: str, run: Callable[[], object]) -> None:
        ms = median_ms(lane.stream, run)
        lines.add(f"batch {count}: {what}", ms, "ms", images_per_second=round(count / ms * 1e3))

    line("copies", lambda: lane.copy(held))
    with only(("idct_kernel",)):
        line("Huffman", lane.decode)
    with only(("huffman_kernel",)):
        line("IDCT", lane.decode)
    line("Huffman and IDCT", lane.decode)
    px = data.out_px
    for dtype, layout in (
        ("bfloat16", "space_to_depth"), ("bfloat16", "channels_last"), ("float16", "channels_last"),
        ("float32", "channels_first"), ("uint8", "channels_last"),
    ):  # fmt: skip
        line(f"view {dtype} {layout}", partial(lane.view, px, dtype, layout))
    line(
        "view bfloat16 resized",
        lambda: lane.view(px - 3, "bfloat16", "channels_last", resized=True),
    )


@contextlib.contextmanager
def only(left_out: tuple[str, ...]) -> Iterator[None]:
    """Leaves kernels out, by the names of their factories."""
    real = jpeg.kernel

    class Nothing:
        def __getitem__(self, _: object) -> Callable[..., None]:
            return lambda *_: None

    def chosen(make: Callable[..., Any], *variant: int) -> Any:
        return Nothing() if make.__name__ in left_out else real(make, *variant)

    jpeg.kernel = chosen
    try:
        yield
    finally:
        jpeg.kernel = real


def rival(lines: Lines, data: Data, count: int) -> None:
    """nvJPEG through torchvision."""
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(crop), dtype=torch.uint8) for crop in data.many[:count]]
    laps = []
    for _ in range(4):
        synchronize()
        start = time.perf_counter()
        decode_jpeg(tensors, mode=ImageReadMode.RGB, device="cuda")
        synchronize()
        laps.append(time.perf_counter() - start)
    rate = count / statistics.median(laps[1:])
    lines.add(f"batch {count}: torchvision decode_jpeg(device='cuda')", rate, "images/s")


def indexing(lines: Lines, data: Data) -> None:
    """The row index on the CPU: one thread, then all."""
    import os

    def part(where: slice) -> Index:
        return index_images(data.data, data.begins[where], data.sizes[where])

    count, threads = min(len(data.many), 512), os.cpu_count() or 1
    part(slice(0, 2))
    start = time.perf_counter()
    part(slice(0, count))
    lines.add("index, one thread", 1e6 * (time.perf_counter() - start) / count, "us an image")
    cuts = [slice(at, at + 64) for at in range(0, len(data.many), 64)]
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        join(list(pool.map(part, cuts)))
    seconds = time.perf_counter() - start
    lines.add(f"index, {threads} threads", len(data.many) / seconds, "images/s")


def main() -> int:
    """Runs all parts; what breaks is named, the rest goes on, and the status is 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=Path, required=True, help="folder of JPEGs of one size")
    parser.add_argument("--json", type=Path, help="write the lines there")
    parser.add_argument("--smoke", action="store_true", help="two small images in the simulator")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not (given.smoke and jpeg.SIMULATED):
        print("there is no CUDA device; --smoke needs NUMBA_ENABLE_CUDASIM=1", file=sys.stderr)
        return 1
    np.seterr(all="ignore")
    lines = Lines(given.json)
    counts = (2,) if given.smoke else (256, 1024)
    data = Data(given.crops, 4 if given.smoke else 4096, given.smoke, device)
    lines.add("images", len(data.many), "", bytes_each=int(data.sizes.mean()))
    work: list[tuple[str, Callable[[], None]]] = [("pixels", lambda: pixels(lines, data))]
    work += [(f"end to end {n}", partial(end_to_end, lines, data, n)) for n in counts]
    work.append(("parts", lambda: parts(lines, data, counts[-1])))
    if device.type == "cuda":
        work += [(f"rival {n}", partial(rival, lines, data, n)) for n in counts]
    work.append(("index", lambda: indexing(lines, data)))
    failed = 0
    for name, part in work:
        try:
            part()
        except Exception as error:  # noqa: BLE001 - the loan of a device ends; the rest counts
            failed = 1
            print(f"{name} failed: {type(error).__name__}: {str(error)[:400]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
