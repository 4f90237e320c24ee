"""Who packs a folder of crops into a beton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.contender import Contender, quick_ffcv


def ours(cropped: str, stats: str, out: str, image_format: str, jobs: int) -> Contender:
    """The whole stage of imagenet_prep: plan, fill, verify, manifest. Workers start in the
    lap."""
    beton = Path(out)

    def lap() -> dict[str, int]:
        return {"count": build(Path(cropped), Path(stats), beton, image_format, jobs)}

    return Contender(lap, lambda: beton.unlink(missing_ok=True))


def build(cropped: Path, stats: Path, beton: Path, image_format: str, jobs: int | None) -> int:
    """The crops of the split train -> a beton of ``image_format``; the number of samples."""
    from imagenet_prep.beton.build import build_beton
    from imagenet_prep.core.files import file_digest
    from imagenet_prep.dataset.classes import load_classes
    from imagenet_prep.dataset.journal import Crops
    from imagenet_prep.dataset.statistics import load_stats

    crops = Crops(cropped)
    manifest = build_beton(
        cropped, "train", beton,
        stats=load_stats(stats), stats_digest=file_digest(stats),
        classes=load_classes(cropped), crops=crops.of("train"),
        crop_settings=crops.settings, format=image_format, jobs=jobs,
    )  # fmt: skip
    return manifest.samples


class FilesAndLabels:
    """An indexable data set as FFCV's writer takes it: (image, label) by number."""

    def __init__(self, files: Sequence[str], labels: Sequence[int]) -> None:
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        with Image.open(self.files[index]) as image:
            return image.convert("RGB"), self.labels[index]


def ffcv_writer(
    files: Sequence[str], labels: Sequence[int], out: str, write_mode: str, jobs: int
) -> Contender:
    """FFCV's DatasetWriter over the same files; JPEG at the quality that they have."""
    with quick_ffcv():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

    dataset = FilesAndLabels(files, labels)

    def lap() -> dict[str, int]:
        image = RGBImageField(write_mode=write_mode, jpeg_quality=90)
        writer = DatasetWriter(out, {"image": image, "label": IntField()}, num_workers=jobs)
        writer.from_indexed_dataset(dataset)
        return {"count": len(files)}

    return Contender(lap, lambda: Path(out).unlink(missing_ok=True))
