"""The same views for people who keep FFCV's own ``Loader``, through FFCV's ``Operation``.

    from ffcv.loader import Loader, OrderOption
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.transforms import ToTensor

    windows = Windows(Views(227, 227, "random", mirror=True, lighting=0.1), stats)
    loader = Loader("train.beton", 256, order=OrderOption.RANDOM, pipelines={
        "image": [SimpleRGBImageDecoder(), windows, ToTensor()],
        "label": [IntDecoder(), ToTensor()],
    })
    for epoch in range(90):
        windows.epoch = epoch
        for images, labels in loader: ...

FFCV decodes with libjpeg-turbo's fast IDCT, whose pixels differ by about a level from those of
``train_loader``; what is drawn for a sample, and the arithmetic, are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numpy.typing import NDArray

from imagenet_prep.core.errors import UsageError
from imagenet_prep.dataset.beton_tables import BetonInfo
from imagenet_prep.dataset.statistics import Stats
from trainer.loader.checks import check_views
from trainer.loader.cpu import Decoder
from trainer.views.views import Views


class Windows(Operation):  # type: ignore[misc]
    """FFCV operation: uint8 images (S, S, 3) -> (out, out, 3) of ``views.dtype``, with one more
    axis in front for several views. ``epoch`` and ``lighting`` hold for the next batch.

    UsageError for bfloat16, which FFCV's arrays do not have.
    """

    def __init__(self, views: Views, stats: Stats) -> None:
        super().__init__()
        check_views(views)
        if views.dtype == "bfloat16":
            raise UsageError("loader.dtype", "dtype is bfloat16; FFCV has float32 and float16")
        self.views, self.stats = views, stats
        self.epoch, self.lighting = 0, views.lighting
        self._decoder: Decoder | None = None

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """FFCV's question: what comes out of this operation, and where it is put."""
        side, out = previous_state.shape[0], self.views.out_px
        if previous_state.shape[:2] != self.stats.mean.shape[:2] or side < self.views.crop_px:
            raise UsageError(
                "loader.crop_size",
                f"images of {side} px, statistics of {self.stats.size_px} px and a crop_size of "
                f"{self.views.crop_px} do not fit together",
            )
        shape = (out, out, 3) if self.views.count == 1 else (self.views.count, out, out, 3)
        dtype = np.dtype(self.views.dtype)
        state = replace(previous_state, jit_mode=False, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """FFCV's question: the function of a batch. It calls the compiled kernels."""

        def run(images: NDArray[np.uint8], out: NDArray[Any], indices: Any) -> NDArray[Any]:
            decoder = self._decoder_for(images)
            decoder.draws.epoch, decoder.draws.lighting = self.epoch, self.lighting
            decoder.run(np.asarray(indices, np.uint64), out.ctypes.data, images)
            result: NDArray[Any] = out[: len(indices)]
            return result

        run.with_indices = True  # type: ignore[attr-defined]
        return run

    def _decoder_for(self, images: NDArray[np.uint8]) -> Decoder:
        if self._decoder is None or len(self._decoder.status) < len(images):
            side = images.shape[1]
            info = BetonInfo(
                0, side, 0, (), 1, np.zeros((0, 4), np.int64), np.zeros(0, np.int64), (),
                np.zeros(1, np.int64),
            )  # fmt: skip
            # One thread: FFCV's own threads may compute at the same time.
            self._decoder = Decoder(info, self.stats, self.views, batch_size=len(images), jobs=1)
        return self._decoder
