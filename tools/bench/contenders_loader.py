"""Who feeds a training: an epoch of random 227 x 227 crops in batches. Ours and FFCV's.

A lap is one epoch. The consumer does nothing with a batch but count it.
"""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.bench.contender import Contender, quick_ffcv

CROP_PX = 227


def _epochs(loader: Any, count: Any) -> Contender:
    def lap() -> dict[str, int]:
        return {"count": sum(count(batch) for batch in loader)}

    return Contender(lap)


def _ours(beton: str, stats: str, batch: int, threads: int, settings: dict[str, Any]) -> Any:
    from imagenet_prep.dataset.statistics import load_stats
    from trainer.loader.loader import train_loader

    return train_loader(
        Path(beton), load_stats(Path(stats)), batch_size=batch, crop_size=CROP_PX, jobs=threads,
        **settings,
    )  # fmt: skip


def ours(beton: str, stats: str, batch: int, threads: int, settings: dict[str, Any]) -> Contender:
    """trainer.loader's train_loader with these ``settings``."""
    loader = _ours(beton, stats, batch, threads, settings)
    return _epochs(loader, lambda batch: len(batch.images))


def ours_memory(
    beton: str, stats: str, batch: int, threads: int, settings: dict[str, Any]
) -> Contender:
    """The memory that an epoch of train_loader adds to a process that has had one already.

    A first, small epoch loads the compiled code. Counted is memory of this process alone:
    the beton's pages in the cache belong to the system (Linux only).
    """
    with _ours(beton, stats, 1, threads, settings) as small:
        next(iter(small))
    gc.collect()

    def lap() -> dict[str, float]:
        before = _own_memory_bytes()
        peak = [before]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                peak[0] = max(peak[0], _own_memory_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        count = batch_bytes = 0
        try:
            with _ours(beton, stats, batch, threads, settings) as loader:
                for images, *_ in ((each.images,) for each in loader):
                    count += len(images)
                    batch_bytes = max(batch_bytes, images.nelement() * images.element_size())
        finally:
            done.set()
            watcher.join()
        return {"count": count, "added": peak[0] - before, "batch": batch_bytes}

    return Contender(lap)


def _own_memory_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def ffcv_stock(beton: str, batch: int, threads: int, flip: bool, compiled: bool) -> Contender:
    """FFCV's own pipeline: whole images of 256 x 256, since FFCV has no plain random crop,
    with RandomHorizontalFlip or only decoded. FFCV calls torch.set_num_threads, so that this
    is nobody's process but its own."""
    with quick_ffcv():
        from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.pipeline.compiler import Compiler
        from ffcv.transforms import RandomHorizontalFlip, ToTensor

    Compiler.set_enabled(compiled)
    image: list[Any] = [SimpleRGBImageDecoder()]
    if flip:
        image.append(RandomHorizontalFlip())
    image.append(ToTensor())
    loader = Loader(
        beton, batch_size=batch, num_workers=threads, order=OrderOption.RANDOM, os_cache=True,
        drop_last=False, pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip
    for _ in loader:  # compiles
        pass
    return _epochs(loader, lambda batch: len(batch[0]))


def decode_alone(files: list[str], threads: int, library: bool) -> Contender:
    """Only JPEG bytes to pixels, by this package's decoder or with the accurate IDCT of the
    machine's libjpeg-turbo: of T threads each has every T-th image and one buffer."""
    import numpy as np

    from imagenet_prep.jpeg import turbo

    decode = turbo.of_library() if library else turbo.decode_into
    assert decode is not None
    images = [Path(path).read_bytes() for path in files]

    def part(first: int) -> int:
        out = np.empty((256, 256, 3), np.uint8)
        for data in images[first::threads]:
            decode(data, out)
        return int(out[0, 0, 0])

    part(len(images) - 1)  # loads, or compiles
    pool = ThreadPoolExecutor(threads)

    def lap() -> dict[str, int]:
        return {"sum": sum(pool.map(part, range(threads))), "count": len(images)}

    return Contender(lap)


def decode_newer(files: list[str]) -> Contender:
    """The same in one thread by simplejpeg, whose package brings a newer libjpeg-turbo."""
    import numpy as np
    import simplejpeg

    images = [Path(path).read_bytes() for path in files]
    out = np.empty((256, 256, 3), np.uint8)

    def lap() -> dict[str, int]:
        for data in images:
            simplejpeg.decode_jpeg(data, "RGB", fastdct=False, buffer=out)
        return {"count": len(images), "sum": int(out.sum())}

    return Contender(lap)
