"""The views in stock FFCV's own loader, and stock FFCV beside ours in one process.

Run by test_ffcv_ops.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imagenet_prep.core.errors import UsageError
from tests.kit.loading import Sample, expected, kept, pixels, train
from tests.trainer.conftest import make_beton
from trainer.views.views import Views


@pytest.fixture(scope="session", autouse=True)
def marked_types() -> None:
    """FFCV's first loader marks types of numba as read-only, under which functions that were
    compiled before are not found any more: here it does so before any is compiled."""
    from ffcv.memory_managers.os_cache import OSCacheManager
    from ffcv.memory_managers.process_cache.manager import ProcessCacheManager

    for manager in (OSCacheManager, ProcessCacheManager):
        assert manager.state_type.fget(None).count >= 3


@pytest.fixture(autouse=True)
def quiet_ffcv() -> Iterator[None]:
    """FFCV 1.0.2 uses what Python means to drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def raw_beton(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """25 raw images: FFCV's decoder of JPEGs has other pixels."""
    return make_beton(tmp_path_factory.mktemp("raw"), 25, 64, format="raw")


def stock(path: Path, *operations: Any, size: int = 25) -> Any:
    """Stock FFCV's loader over a beton in the order of the file."""
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    return Loader(
        str(path), size, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder(), *operations, ToTensor()],
                   "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip


def images(loader: Any) -> NDArray[Any]:
    return np.concatenate([batch[0].numpy().copy() for batch in loader])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "uint8", "mean": "none", "lighting_mode": "off"},
        {"view": "resized", "out_size": 40, "scaled": True, "lighting_mode": "image"},
    ],
)
def test_stock_ffcv_gets_the_pixels_of_our_loader(
    raw_beton: Sample, changes: dict[str, Any]
) -> None:
    from trainer.loader.ffcv_ops import Windows

    with train(raw_beton, **changes) as batches:
        windows = Windows(batches.views, raw_beton.stats)
        loader = stock(raw_beton.path, windows, size=8)
        for epoch in (0, 1):
            windows.epoch = epoch
            np.testing.assert_array_equal(images(loader), pixels(kept(batches)))


def test_all_views_of_an_image_come_together(raw_beton: Sample) -> None:
    from trainer.loader.ffcv_ops import Windows

    views = Views(51, 51, "ten", dtype="float16")
    found = images(stock(raw_beton.path, Windows(views, raw_beton.stats)))
    assert found.shape == (25, 10, 51, 51, 3)
    want = raw_beton.images[3, :51, 13:].astype(np.float32) - raw_beton.stats.mean[:51, 13:]
    np.testing.assert_array_equal(found[3, 1], want.astype(np.float16))


def test_what_does_not_fit_is_wrong_usage(small_beton: Sample, full_beton: Sample) -> None:
    from trainer.loader.ffcv_ops import Windows

    with pytest.raises(UsageError) as caught:
        Windows(Views(51, 51, dtype="bfloat16"), small_beton.stats)
    assert caught.value.code == "loader.dtype"
    with pytest.raises(UsageError) as caught:
        stock(small_beton.path, Windows(Views(51, 51), full_beton.stats))
    assert caught.value.code == "loader.crop_size"


def test_stock_ffcv_reads_our_betons_and_does_our_loader_no_harm(small_beton: Sample) -> None:
    before = torch.get_num_threads()
    found = images(stock(small_beton.path))
    torch.set_num_threads(before)
    # The fast IDCT's pixels: about a level off.
    off = np.abs(found.astype(int) - small_beton.images)
    assert off.mean() < 1
    with train(small_beton, jobs=2) as batches:
        np.testing.assert_allclose(
            pixels(kept(batches)), expected(small_beton, batches, 0), atol=1e-3, rtol=0
        )
