"""Prediction on raw images agrees with the loader's evaluation of the same images."""

from __future__ import annotations

import dataclasses
import http.server
import io
import shutil
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from imagenet_prep.core.errors import quiet
from imagenet_prep.crop.image import crop_pixels
from imagenet_prep.dataset.crop_settings import CropSettings
from tests.kit.errors import fails
from trainer.checkpoint import load_checkpoint
from trainer.config import presets
from trainer.inference import predict as predict_module
from trainer.inference.predict import list_inputs, predict
from trainer.inference.preprocess import Preparation
from trainer.loader.loader import eval_loader
from trainer.training.run import train

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample


@pytest.mark.parametrize("out_px", [56, 40, 72])
@pytest.mark.parametrize(("mean", "scaled"), [("image", False), ("channel", True), ("none", False)])
def test_input_is_what_the_loader_makes(
    small_beton: Sample, out_px: int, mean: str, scaled: bool
) -> None:
    with eval_loader(
        small_beton.path, small_beton.stats, batch_size=25, crop_size=56, out_size=out_px,
        mean=mean, scaled=scaled, jobs=1,
    ) as batches:  # fmt: skip
        images = next(iter(batches)).images.clone()
    config = dataclasses.replace(presets.preset("small"), crop_size=56, mean=mean, scaled=scaled)
    prepare = Preparation.of(config, small_beton.stats, out_px)
    for place, pixels in enumerate(small_beton.images):
        assert torch.allclose(prepare(torch.from_numpy(pixels)), images[place], atol=1e-3)


@pytest.fixture(scope="module")
def checkpoint(
    small_beton: Sample, tiny_network: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """best.pt of one epoch on the small beton."""
    folder = tmp_path_factory.mktemp("run")
    config = dataclasses.replace(
        presets.preset("small"),
        network=tiny_network,
        epochs=1,
        batch_size=8,
        crop_size=56,
        device="cpu",
        jobs=1,
    )
    train(config, small_beton.path, folder, resume=False, report=lambda _: None, progress=quiet)
    return folder / "best.pt"


def test_every_format_gives_the_likeliest_classes(checkpoint: Path, tmp_path: Path) -> None:
    import pillow_avif  # noqa: F401  (registers the format)

    pixels = np.full((90, 120, 3), (200, 30, 60), np.uint8)
    pixels[20:60, 30:80] = (10, 200, 90)
    for suffix in ("jpg", "png", "webp", "avif"):
        Image.fromarray(pixels).save(tmp_path / f"image.{suffix}")
    found = list(predict(checkpoint, list_inputs([str(tmp_path)]), progress=quiet))
    assert len(found) == 4
    for one in found:
        assert one.reason is None
        probabilities = [guess.probability for guess in one.guesses]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
        assert {guess.name for guess in one.guesses} == {"ant", "bee", "cat"}


def test_images_become_square_as_in_training(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = load_checkpoint(checkpoint)
    assert known.crop_settings == CropSettings(64)
    squash = CropSettings(64, fit="squash")
    other = dataclasses.replace(known, config=known.config | {"crop": squash.text()})
    monkeypatch.setattr(predict_module, "load_checkpoint", lambda _: other)
    path = tmp_path / "wide.png"
    pixels = np.arange(40 * 120 * 3, dtype=np.uint32).reshape(40, 120, 3).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    (found,) = predict(checkpoint, list_inputs([str(path)]), progress=quiet)
    assert found.pixels is not None
    assert np.array_equal(found.pixels, crop_pixels(path.read_bytes(), squash))
    assert not np.array_equal(found.pixels, crop_pixels(path.read_bytes(), CropSettings(64)))


def test_an_image_in_a_folder_named_as_a_class_is_judged(checkpoint: Path, tmp_path: Path) -> None:
    for place in ("bee/1.png", "bee/images/2.png", "bees/3.png", "4.png"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (70, 70), (5, 6, 7)).save(path)
    found = {Path(one.name).name: one for one in predict(checkpoint, list_inputs([str(tmp_path)]),
                                                   progress=quiet)}  # fmt: skip
    assert [found[f"{n}.png"].truth for n in (1, 2, 3, 4)] == ["bee", "bee", None, None]
    assert found["1.png"].right == (found["1.png"].guesses[0].name == "bee")
    assert found["3.png"].right is None


def test_a_broken_image_is_a_reason_and_the_rest_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    Image.new("RGB", (70, 70), (5, 6, 7)).save(tmp_path / "b.png")
    first, second = predict(checkpoint, list_inputs([str(tmp_path)]), progress=quiet)
    assert first.reason
    assert not first.guesses
    assert second.guesses


def test_archives_urls_and_stdin_are_predicted_as_files_are(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "raw" / "bee"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 256, (90, 80, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "1.png")
    for form in ("zip", "gztar"):
        shutil.make_archive(str(tmp_path / "raw"), form, tmp_path / "raw")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper((folder / "1.png").open("rb")))
        url = f"http://127.0.0.1:{server.server_port}/raw"
        words = [str(folder), str(tmp_path / "raw.zip"), str(tmp_path / "raw.tar.gz"), "-"]
        inputs = list_inputs([*words, f"{url}/bee/1.png"])
        found = list(predict(checkpoint, inputs, device="cpu", progress=quiet))
        server.shutdown()
        thread.join()
        sys.stdin.close()
    assert [one.name.removeprefix(str(tmp_path)) for one in found] == [
        "/raw/bee/1.png", "/raw.zip/bee/1.png", "/raw.tar.gz/./bee/1.png", "-", f"{url}/bee/1.png",
    ]  # fmt: skip
    assert [one.reason for one in found] == [None] * 5
    assert len({one.guesses for one in found}) == 1
    assert [one.truth for one in found] == ["bee", "bee", "bee", None, "bee"]


def test_places_without_images_are_usage_errors(tmp_path: Path) -> None:
    with fails("predict.empty", usage=True):
        list_inputs([str(tmp_path)])
    with fails("predict.missing", "lost.jpg", usage=True):
        list_inputs([str(tmp_path / "lost.jpg")])
    (tmp_path / "a.zip").write_text("text")
    with fails("predict.archive", "a.zip"):
        list_inputs([str(tmp_path / "a.zip")])
