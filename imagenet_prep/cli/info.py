"""Values of ``imagenet-prep info``: this installation, or a file or folder."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imagenet_prep.cli.options import is_pillow_simd
from imagenet_prep.cli.results import stats_value
from imagenet_prep.core.errors import UsageError
from imagenet_prep.core.files import publish
from imagenet_prep.dataset.classes import load_classes
from imagenet_prep.dataset.names import JOURNAL_NAME
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.dataset.statistics import load_stats

_PACKAGES = ("imagenet-alexnet", "pillow-simd", "Pillow", "numpy", "joblib", "ffcv", "torch")
_LIBRARIES = ("littlecms2", "jpg_2000", "webp", "libtiff", "zlib")
_SHEET_IMAGES = 48


def installed() -> dict[str, Any]:
    """Versions, the libraries and formats of the module PIL, and the number of processors."""
    from PIL import Image, features

    from imagenet_prep.workers.processes import resolve_jobs

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    Image.init()
    avif = features.check("avif") or importlib.util.find_spec("pillow_avif") is not None
    jpeg = "libjpeg_turbo" if features.check_feature("libjpeg_turbo") else "jpg"
    return {
        "what": "installation",
        "versions": versions,
        "pillow_simd": is_pillow_simd(),
        "formats": {
            "webp": bool(features.check("webp")),
            "avif": bool(avif),
            "jpeg_2000": bool(features.check("jpg_2000")),
            "tiff": bool(features.check("libtiff")),
        },
        "libjpeg": f"{jpeg} {features.version(jpeg)}",
        "libraries": {
            name: features.version(name) if features.check(name) else None for name in _LIBRARIES
        },
        "reads": sorted(Image.OPEN),
        "cpus": resolve_jobs(None),
    }


def about_crops(path: Path) -> dict[str, Any]:
    """A folder that ``crop`` made -> its counts; UsageError for another folder."""
    from imagenet_prep.dataset.journal import UNFINISHED_NAME, all_rows, part_journals

    if not part_journals(path) and not (path / JOURNAL_NAME).is_file():
        raise UsageError(
            "info.unknown",
            f"{path}: is not a folder that imagenet-prep crop made; name one, or a file in it",
        )
    with all_rows(path) as journal:
        rows = journal.execute(
            "SELECT split, status, count(*), sum(crop_bytes) FROM source GROUP BY 1, 2 "
            "ORDER BY min(key)"
        ).fetchall()
    splits = {split: count for split, status, count, _ in rows if status == "ok"}
    failed = sum(count for _, status, count, _ in rows if status == "failed")
    return {
        "what": "crops",
        "path": str(path),
        # Parts that were not merged are not finished.
        "finished": (path / JOURNAL_NAME).is_file() and not (path / UNFINISHED_NAME).exists(),
        "classes": len(load_classes(path)),
        "splits": splits,
        "ok": sum(splits.values()),
        "failed": failed,
        "bytes": sum(row[3] for row in rows),
    }


def about_betons(betons: Betons, image: Path | None) -> dict[str, Any]:
    """The contents of a beton file, or of the shards of a set; with ``image`` also a PNG of the
    first samples there."""
    from imagenet_prep.dataset.beton_tables import inspect_betons

    manifest = betons.manifest
    labels = Counter(inspect_betons(betons.paths).labels.tolist())
    if image is not None:
        from imagenet_prep.beton.build import read_samples
        from imagenet_prep.stats.plot import contact_sheet

        samples: list[Any] = []
        for path in betons.paths:
            if len(samples) < _SHEET_IMAGES:
                samples += read_samples(path, _SHEET_IMAGES - len(samples))
        titles = [manifest.readable.get(name, name) for name in manifest.classes]
        png = contact_sheet([pixels for pixels, _ in samples], [titles[n] for _, n in samples])
        with publish(image) as temporary:
            temporary.write_bytes(png)
    return {
        "what": "beton",
        "path": betons.name,
        **_shards(betons),
        "split": manifest.split,
        "samples": manifest.samples,
        "size": manifest.size_px,
        "classes": len(manifest.classes),
        "formats": dict(manifest.formats),
        "bytes": manifest.bytes,
        "pages": len(manifest.pages),
        "page_size_bytes": manifest.page_size_bytes,
        "digest": manifest.digest,
        "statistics": str(betons.stats),
        "stats_digest": manifest.stats_digest,
        "source": manifest.source,
        "settings": dict(manifest.settings),
        "versions": dict(manifest.versions),
        "class_samples": [
            {
                "label": label,
                "class": name,
                "name": manifest.readable.get(name, name),
                "samples": labels[label],
            }
            for label, name in enumerate(manifest.classes)
        ],
    }


def _shards(betons: Betons) -> dict[str, Any]:
    """The files of a set of shards; for one shard of a set its number; else nothing."""
    manifest = betons.manifest
    if not manifest.set:
        return {}
    if len(betons.paths) < manifest.shards:
        return {"shard": f"{manifest.shard} of {manifest.shards}"}
    return {"shards": manifest.shards, "files": [str(path) for path in betons.paths]}


def about_stats(path: Path) -> dict[str, Any]:
    """The figures of a statistics file."""
    return {"what": "statistics", "path": str(path), **stats_value(load_stats(path))}
