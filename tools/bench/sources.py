"""How fast images are cropped from archives and tables, beside the same images in class folders.

    python tools/bench/sources.py [--smoke] [--json FILE] [--images FOLDER] [--rounds N]

The whole stage with two workers: recognising, planning, reading, cropping, the journal. All
layouts hold the same images in the same classes; each is cropped anew in each lap.
"""

from __future__ import annotations

import gzip
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.harness import Entrant, Options, options, race, work_folder
from tools.bench.image_sets import link_collection, photographs
from tools.bench.recording import Record, speed_row

FOLDERS = "class folders"
AT_LEAST = {"tar": 0.95, "Parquet": 0.95, "zip": 0.95, "WebDataset": 0.95, "tar.gz": 0.5}
IMAGES, SMOKE_IMAGES = 600, 20
ROW_GROUP = 100


def sources(folders: Path, work: Path) -> dict[str, Path]:
    """Class folders -> the same images in every other layout, made once."""
    files = {p.relative_to(folders).as_posix(): p for p in sorted(folders.rglob("*.jpg"))}
    paths = {
        FOLDERS: folders,
        "tar": work / "set.tar",
        "tar.gz": work / "set.tar.gz",
        "zip": work / "set.zip",
        "Parquet": work / "train-00000-of-00001.parquet",
        "WebDataset": work / "set-train-0.tar",
    }
    with tarfile.open(paths["tar"], "w") as tar:
        for name, path in files.items():
            tar.add(path.resolve(), name)
    with gzip.open(paths["tar.gz"], "wb", compresslevel=1) as packed:
        packed.write(paths["tar"].read_bytes())
    with zipfile.ZipFile(paths["zip"], "w") as archive:
        for name, path in files.items():
            archive.write(path, name)
    _parquet(files, paths["Parquet"])
    _webdataset(files, work / "labels", paths["WebDataset"])
    return paths


def _parquet(files: dict[str, Path], target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": path.read_bytes(), "path": None} for path in files.values()]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [name.split("/")[1] for name in files]
    pq.write_table(
        pa.table({"image": pa.array(rows, kind), "label": labels}), target, row_group_size=ROW_GROUP
    )


def _webdataset(files: dict[str, Path], labels: Path, target: Path) -> None:
    labels.mkdir(exist_ok=True)
    with tarfile.open(target, "w") as tar:
        for number, (name, path) in enumerate(files.items()):
            label = labels / name.split("/")[1]
            label.write_text(label.name)
            tar.add(path.resolve(), f"{number:07d}.jpg")
            tar.add(label, f"{number:07d}.cls")


def main() -> int:
    """Runs the race."""
    given: Options = options(__doc__.splitlines()[0] if __doc__ else "")
    with work_folder(given) as work:
        record = Record("sources", given)
        images = photographs(given, work, imagenet_only=True)
        count = SMOKE_IMAGES if given.smoke else IMAGES
        folders = link_collection(images.files, work / f"raw-{count}", count)
        record.details = {"kind": images.kind, "images": count}
        entrants = [
            Entrant(name, "contenders_crop:stage",
                    [{"src": str(src), "dst": str(work / f"to {name}"), "jobs": 2}])
            for name, src in sources(folders, work).items()
        ]  # fmt: skip
        result = race("crop from sources, two workers", entrants, given)
        rows = [speed_row(result, name, FOLDERS, limit) for name, limit in AT_LEAST.items()]
        named = zip(AT_LEAST, rows, strict=True)
        record.add(result, *(row and replace(row, what=f"crop from {name}") for name, row in named))
        return record.finish()


if __name__ == "__main__":
    sys.exit(main())
