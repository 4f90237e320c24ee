"""The JPEG decoder's kernels on a CUDA device: every variant, damage, and torch's memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imagenet_prep.jpeg import core
from tests.kit.jpegs import content, encoded, expected_view, host_batch, pillow

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_every_variant_equals_pillow_and_damage_has_a_status() -> None:
    from tests.kit.jpeg_device import run

    assert run(120, 256, 61) == 0


def test_images_of_one_set_of_tables_equal_pillow() -> None:
    """256 images of 256 px, into torch's memory on torch's stream."""
    from imagenet_prep.jpeg import cuda

    rng = np.random.default_rng(0)
    images = [encoded(content(rng, 256, 256, i % 5), quality=90) for i in range(256)]
    host = host_batch(images)
    device = torch.device("cuda")
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def there(values: np.ndarray) -> torch.Tensor:
        signed = values.view(f"i{values.itemsize}") if values.dtype.kind == "u" else values
        return torch.from_numpy(signed.copy()).to(device)

    held = [there(a) for a in (host.words, host.begins, *host[3:], np.zeros(256, np.int32))]
    words, *small = map(cuda.as_array, held)
    batch = cuda.Batch(words.view(np.uint32), *small)
    y, x = rng.integers(0, 30, (2, 256))
    windows = np.stack([y, x, y * 0 + 227, y * 0 + 227, y & 1], 1).astype(np.int32)
    mean = rng.uniform(90, 150, (256, 256, 3)).astype(np.float32)
    shift, gain = rng.normal(0, 9, (256, 3)).astype(np.float32), np.ones(3, np.float32)
    sources = [there(a) for a in (windows, mean, shift, gain)]
    at, mean_there, shift_there, gain_there = map(cuda.as_array, sources)
    views = cuda.Views(at, 1, mean_there, False, shift_there, gain_there)
    out = torch.zeros((256, 57, 57, 48), dtype=torch.bfloat16, device=device)
    decoder = cuda.Decoder(host.indexed, cuda.tables(host.indexed), 256)
    torch.cuda.synchronize()
    on = cuda.as_stream(stream)
    decoder.decode(batch, on)
    decoder.view(
        batch, views, cuda.as_array(out.view(-1)), 227, "bfloat16", "space_to_depth", stream=on
    )
    stream.synchronize()
    assert (held[-1] == core.OK).all()
    found = out.view(256, -1).view(torch.int16).cpu().numpy()
    for number, image in enumerate(images):
        want = expected_view(
            pillow(image), windows[number], mean, shift[number], gain, "bfloat16", "space_to_depth"
        )
        assert np.array_equal(found[number], want), number
