"""Who feeds a training from files of 256 x 256 crops: NVIDIA DALI on the CPU.

A lap is as many batches as an epoch has; DALI fills up the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.bench.contender import Contender

CROP_PX = 227
BATCHES_AHEAD = 3


def _epochs(
    files: Sequence[str], labels: Sequence[int], batch: int, threads: int,
    define: Callable[[Any, Any, Any, Any], Any],
) -> Contender:  # fmt: skip
    """``define(encoded, x, y, mirror)`` -> the images, all as DALI's graph nodes."""
    import numpy as np
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(
        batch_size=batch, num_threads=threads, device_id=None, seed=0,
        prefetch_queue_depth=BATCHES_AHEAD,
    )  # fmt: skip
    with pipeline:
        encoded, label = fn.readers.file(
            files=list(files), labels=list(labels), random_shuffle=True
        )
        x, y = fn.random.uniform(range=(0.0, 1.0)), fn.random.uniform(range=(0.0, 1.0))
        pipeline.set_outputs(define(encoded, x, y, fn.random.coin_flip()), label)
    pipeline.build()
    batches = math.ceil(len(files) / batch)

    def lap() -> dict[str, int]:
        # Scheduled by hand, so that the pipeline is empty before and after a lap: left to
        # itself it works on the next epoch while others run, which would count for nothing.
        count, scheduled = 0, min(BATCHES_AHEAD, batches)
        for _ in range(scheduled):
            pipeline.schedule_run()
        for _ in range(batches):
            images, _labels = pipeline.share_outputs()
            count += len(np.asarray(images.as_tensor()))  # a view: one dense array
            pipeline.release_outputs()
            if scheduled < batches:
                pipeline.schedule_run()
                scheduled += 1
        return {"count": count}

    return Contender(lap)


def _crops(encoded: Any, x: Any, y: Any) -> Any:
    from nvidia.dali import fn

    return fn.decoders.image_crop(
        encoded, device="cpu", crop=(CROP_PX, CROP_PX), crop_pos_x=x, crop_pos_y=y
    )


def uint8(files: Sequence[str], labels: Sequence[int], batch: int, threads: int) -> Contender:
    """Decoding, crop and mirror only."""
    from nvidia.dali import fn

    def define(encoded: Any, x: Any, y: Any, mirror: Any) -> Any:
        return fn.flip(_crops(encoded, x, y), horizontal=mirror)

    return _epochs(files, labels, batch, threads, define)


def _shift(stats: Any) -> Any:
    """Colour noise of an image, three levels, as our definition has it."""
    import numpy as np
    from nvidia.dali import fn, types

    columns = (0.1 * stats.eigenvectors * stats.eigenstdev).T.astype(np.float32)
    parts = [fn.random.normal() * types.Constant(column, device="cpu") for column in columns]
    return parts[0] + parts[1] + parts[2]


def floats(
    files: Sequence[str], labels: Sequence[int], stats: str, batch: int, threads: int,
    mean_image: bool,
) -> Contender:  # fmt: skip
    """float32 with colour noise. With ``mean_image`` what ours makes: the mean image at the
    crop's place. Without: less work, DALI's fused operation and a mean per channel."""
    import numpy as np
    from nvidia.dali import fn, types

    from imagenet_prep.dataset.statistics import load_stats

    loaded = load_stats(Path(stats))

    def define(encoded: Any, x: Any, y: Any, mirror: Any) -> Any:
        images, shift = _crops(encoded, x, y), _shift(loaded)
        if mean_image:
            mean = types.Constant(np.asarray(loaded.mean), device="cpu", layout="HWC")
            local = fn.crop(mean, crop=(CROP_PX, CROP_PX), crop_pos_x=x, crop_pos_y=y)
            return fn.flip(images - local + shift, horizontal=mirror)
        channels = types.Constant(loaded.channel_mean.astype(np.float32), device="cpu")
        return fn.crop_mirror_normalize(
            images, mirror=mirror, mean=channels - shift, std=1.0, dtype=types.FLOAT,
            output_layout="HWC",
        )  # fmt: skip

    return _epochs(files, labels, batch, threads, define)
