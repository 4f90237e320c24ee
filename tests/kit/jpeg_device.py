"""The device's kernels on every variant beside Pillow's pixels: on a GPU, or in the simulator.

    NUMBA_ENABLE_CUDASIM=1 python -m tests.kit.jpeg_device

``run`` prints a line for each variant and returns how many elements differ.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_prep.jpeg import core
from tests.kit.jpegs import (
    Host,
    bfloat16_bits,
    expected_resampled,
    expected_view,
    host_batch,
    made,
    pillow,
)

NUMPY = {"uint8": np.uint8, "float32": np.float32, "float16": np.float16, "bfloat16": np.int16}


class Device:
    """A batch brought to the device and decoded there, perhaps by the decoder of another one."""

    def __init__(
        self, host: Host, jobs: NDArray[np.int32] | None = None, decoder: Any = None
    ) -> None:
        from imagenet_prep.jpeg import cuda

        self.cuda: Any = cuda
        self.up = up = cuda.cuda.to_device
        self.host, count = host, len(host.jobs)
        self.batch = cuda.Batch(
            up(host.words), up(host.begins), up(host.jobs if jobs is None else jobs),
            up(host.positions), up(host.predictors), up(np.zeros(count, np.int32)),
        )  # fmt: skip
        self.decoder = decoder or cuda.Decoder(host.indexed, cuda.tables(host.indexed), count)
        self.decoder.decode(self.batch)

    @property
    def status(self) -> list[int]:
        return list(self.batch.status.copy_to_host().tolist())

    def view(
        self, windows: NDArray[np.int32], settings: tuple[Any, ...], size: int, dtype: str,
        layout: str, *, centre: bool = False, resized: bool = False,
    ) -> NDArray[Any]:  # fmt: skip
        """Views (n, elements) on the host; ``settings`` are mean, shift and gain."""
        up, count = self.up, len(windows)
        mean, shift, gain = map(up, settings)
        each = count // len(self.host.jobs)
        views = self.cuda.Views(up(windows), each, mean, centre, shift, gain)
        length = self.cuda.elements(size, layout)
        out = up(np.full(count * length, 7, NUMPY[dtype]))
        self.decoder.view(self.batch, views, out, size, dtype, layout, resized=resized)
        return np.asarray(out.copy_to_host()).reshape(count, -1)


def settings_for(count: int, side: int) -> tuple[Any, ...]:
    """A mean image of ``side`` pixels, a shift for each image, a gain."""
    rng = np.random.default_rng(4)
    mean = rng.uniform(90, 150, (side, side, 3)).astype(np.float32)
    gain = rng.uniform(0.5, 2, 3).astype(np.float32)
    return mean, rng.normal(0, 20, (count, 3)).astype(np.float32), gain


def windows_in(frames: list[Any], size: int | None, seed: int = 5) -> NDArray[np.int32]:
    """A window of ``size`` pixels, or of any, somewhere in each image; every other mirrored."""
    rng = np.random.default_rng(seed)
    found = []
    for number, frame in enumerate(frames):
        high, wide = frame.shape[:2]
        height, width = (size, size) if size else rng.integers([5, 5], [high + 1, wide + 1])
        y, x = rng.integers(0, [high - height + 1, wide - width + 1])
        found.append((y, x, height, width, number % 2))
    return np.array(found, np.int32)


def differences(got: NDArray[Any], want: list[Any]) -> int:
    kind = {1: np.uint8, 2: np.int16, 4: np.int32}[got.dtype.itemsize]
    return int((got.view(kind) != np.stack(want).astype(got.dtype).view(kind)).sum())


def report(what: str, wrong: int) -> int:
    sys.stdout.write(f"{what}: {wrong} differ\n")
    sys.stdout.flush()
    return wrong


def plain(device: Device, frames: list[Any], side: int, size: int) -> int:
    """Every dtype and layout; a centred mean; several views of each image."""
    wrong = 0
    settings = settings_for(len(frames), side)
    windows = windows_in(frames, size)
    mean, shift, gain = settings
    for dtype in NUMPY:
        for layout in device.cuda.LAYOUTS:
            got = device.view(windows, settings, size, dtype, layout)
            want = [
                expected_view(frame, window, mean, s, gain, dtype, layout)
                for frame, window, s in zip(frames, windows, shift, strict=True)
            ]
            wrong += report(f"{dtype} {layout}", differences(got, want))
    each = 2
    several = np.repeat(windows, each, axis=0)
    several[::each, 4] = 1
    small = (mean[:1, :1], shift, gain)
    for name, centre, chosen in (("centred mean", True, settings), ("one mean", False, small)):
        got = device.view(several, chosen, size, "float32", "channels_last", centre=centre)
        want = [
            expected_view(
                frames[v // each],
                window,
                chosen[0],
                shift[v // each],
                gain,
                "float32",
                "channels_last",
                centre,
            )
            for v, window in enumerate(several)
        ]
        wrong += report(f"{name}, {each} views of each", differences(got, want))
    return wrong


def resized(device: Device, frames: list[Any], side: int, size: int) -> int:
    """Resampled views in every dtype; uint8 and float32 to the bit."""
    wrong = 0
    mean, shift, gain = settings_for(len(frames), side)
    windows = windows_in(frames, None)
    nothing = (np.zeros((1, 1, 3), np.float32), np.zeros_like(shift), np.ones(3, np.float32))
    for dtype in NUMPY:
        used = nothing if dtype == "uint8" else (mean, shift, gain)
        got = device.view(windows, used, size, dtype, "channels_last", resized=True)
        want: list[Any] = [
            expected_resampled(frame, window, size, used[0], s, used[2]).ravel()
            for frame, window, s in zip(frames, windows, used[1], strict=True)
        ]
        if dtype == "uint8":
            want = [np.clip(np.rint(view), 0, 255) for view in want]
        if dtype == "bfloat16":
            want = [bfloat16_bits(view) for view in want]
        wrong += report(f"resized {dtype}", differences(got, want))
    return wrong


def damaged(host: Host, size: int) -> tuple[int, Any]:
    """Damage of every kind gives the image its status, zeros in its view, and the others their
    pixels -> how many statuses are not as expected, and the decoder."""
    jobs = host.jobs.copy()
    words = host.words.copy()
    positions = host.positions.copy()
    jobs[1, core.WIDTH] = 1 << 20
    jobs[2, core.ROW] += 1
    data, begin = words.view(np.uint8), int(host.begins[3])
    start = begin + int(positions[jobs[3, core.ROW]]) // 8
    data[start : start + 40] ^= 0x5A
    changed = host._replace(words=words, jobs=jobs, positions=positions)
    device = Device(changed)
    found = [status != core.OK for status in device.status]
    expected = [1 <= number <= 3 for number in range(len(jobs))]
    shapes = host.jobs[:, [core.HEIGHT, core.WIDTH]]
    windows = np.array([(0, 0, size, size, 0)] * len(jobs), np.int32)
    windows[0, 0] = shapes[0, 0]  # below the image
    settings = settings_for(len(jobs), 64)
    views = device.view(windows, settings, size, "float32", "channels_last")
    expected[0] = True
    found[0] = device.status[0] == core.BAD_VIEW
    zeros = [not view.any() for view in views]
    wrong = sum(a != b for a, b in zip(found, expected, strict=True))
    wrong += sum(a != b for a, b in zip(zeros, expected, strict=True))
    return report("damage", wrong), device.decoder


def fuzz(host: Host, count: int, size: int) -> int:
    """Batches and windows with random damage -> how many broke: in the simulator, an access
    outside of an array is an IndexError. Whatever has no status must lie in the image."""
    from tests.kit.jpeg_fuzz import shuffled

    rng, broken = np.random.default_rng(8), 0
    for _ in range(count):
        changed = host._replace(
            words=shuffled(host.words.view(np.uint8), rng).view(np.uint32),
            begins=shuffled(host.begins, rng),
            positions=shuffled(host.positions, rng),
            predictors=shuffled(host.predictors, rng),
        )
        windows = np.array([(0, 0, size, size, 0)] * len(host.jobs), np.int32)
        settings = settings_for(len(host.jobs), 64)
        try:
            device = Device(changed, shuffled(host.jobs, rng))
            device.view(shuffled(windows, rng), settings, size, "float32", "channels_last")
        except Exception as error:  # noqa: BLE001 - counted, and shown
            report(f"fuzz: {type(error).__name__}: {error}", 1)
            broken += 1
    return report("fuzz", broken)


def run(count: int, side: int, size: int) -> int:
    """All of it, on made images of up to ``side`` pixels -> how many elements differ."""
    np.seterr(all="ignore")  # integers overflow on purpose; in the simulator, NumPy's
    images = made(count, seed=3, largest=side, smallest=size + 2)
    raw = np.random.default_rng(0).integers(0, 256, (size + 6, size + 9, 3), np.uint8)
    frames = [*map(pillow, images), raw]
    host = host_batch([*images, raw.tobytes()], [(0, 0)] * count + [raw.shape[:2]])
    wrong, decoder = damaged(host, size)
    device = Device(host, decoder=decoder)  # nothing is left there of the damage
    wrong += report("statuses", sum(status != core.OK for status in device.status))
    wrong += plain(device, frames, side, size)
    wrong += resized(device, frames, side, size - 3)
    same = [images[0], *[images[0]] * 2]
    single = Device(host_batch(same))
    windows = windows_in([frames[0]] * 3, size)
    got = single.view(windows, settings_for(3, side), size, "uint8", "channels_last")
    want = [frames[0][y : y + h, x : x + w] for y, x, h, w, _ in windows]
    want = [view[:, ::-1] if number % 2 else view for number, view in enumerate(want)]
    wrong += report("one set of tables", differences(got, [view.ravel() for view in want]))
    small = host_batch(
        [*made(2, seed=6, largest=18, smallest=9), raw.tobytes()], [(0, 0)] * 2 + [raw.shape[:2]]
    )
    return wrong + fuzz(small, int(os.environ.get("JPEG_FUZZ", "8")), 9)


if __name__ == "__main__":
    sys.exit(1 if run(5, 34, 11) else 0)
