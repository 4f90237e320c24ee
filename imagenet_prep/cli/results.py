"""Results of the commands -> JSON values and lines of text. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagenet_prep.dataset.shards import shard_paths, shard_pattern

if TYPE_CHECKING:
    from imagenet_prep.beton.verify import Report
    from imagenet_prep.crop.merge import MergeReport
    from imagenet_prep.crop.run import CropReport
    from imagenet_prep.dataset.manifest import Manifest
    from imagenet_prep.dataset.shards import Betons
    from imagenet_prep.dataset.statistics import Stats
    from imagenet_prep.jpeg.index import Index

_REASONS_SHOWN = 12
_CLASSES_SHOWN = 20


def rate(images: int, seconds: float) -> float:
    """Images per second, to a tenth; 0 where no time passed."""
    return round(images / seconds, 1) if seconds > 0 else 0.0


def crop_value(report: CropReport) -> dict[str, Any]:
    """What ``crop --json`` prints."""
    return {
        "ok": report.ok,
        "failed": report.failed,
        "skipped": report.skipped,
        "layout": report.layout,
        "classes": report.classes,
        "splits": dict(sorted(report.splits.items())),
        "notices": [*report.notices, *report.failed_classes],
        "seconds": round(report.seconds, 3),
        "images_per_second": round(report.images_per_second, 1),
        "reasons": report.reasons,
        "remarks": report.remarks,
    }


def crop_lines(report: CropReport, dst: Path) -> list[str]:
    """The outcome of a crop for people: counts, speed, and failures by reason."""
    speed = f", {report.images_per_second:.1f} images/s" if report.tried else ""
    lines = [
        f"{report.ok} cropped, {report.skipped} up to date, {report.failed} failed; "
        f"{report.classes} class{'es' if report.classes != 1 else ''}: "
        f"{report.seconds:.1f} s{speed}"
    ]
    shown = _first(report.reasons)
    lines.extend(f"{count:>8}  {reason}" for reason, count in shown)
    if len(report.reasons) > len(shown):
        lines.append(f"          and {len(report.reasons) - len(shown)} more reasons")
    lines.extend(f"{count:>8}  {remark}" for remark, count in report.remarks.items())
    lines += [f"note: {notice}" for notice in report.failed_classes]
    if report.failed:
        lines.append(f"          list them with: imagenet-prep failures {dst}")
    return lines


def crop_merge_value(report: MergeReport) -> dict[str, Any]:
    """What ``merge --json`` prints."""
    return {**asdict(report), "seconds": round(report.seconds, 3)}


def crop_merge_lines(value: dict[str, Any], folder: Path) -> list[str]:
    """``crop_merge_value`` -> lines."""
    head = f"{value['parts']} parts in {folder}: {value['ok']} crops, {value['failed']} failed"
    return [head, *(f"{count:>8}  {why}" for why, count in _first(value["reasons"]))]


def _first(reasons: dict[str, int]) -> list[tuple[str, int]]:
    return list(reasons.items())[:_REASONS_SHOWN]


def stats_value(result: Stats) -> dict[str, Any]:
    """The figures of statistics that fit on a line, in levels."""
    return {
        "images": result.count,
        "size": result.size_px,
        "channel_mean": [float(x) for x in result.channel_mean],
        "channel_std": [float(x) for x in result.channel_std],
        "eigenstdev": [float(x) for x in result.eigenstdev],
    }


def stats_figures(result: Stats) -> dict[str, Any]:
    """All figures of statistics but the mean image: what ``stats show --json`` prints."""
    return {
        **stats_value(result),
        "eigenvectors": result.eigenvectors.tolist(),
        "covariance": result.covariance.tolist(),
        "mean_min": float(result.mean.min()),
        "mean_max": float(result.mean.max()),
        "source": result.source,
    }


def _figures(name: str, values: Sequence[float | None], form: str = "9.2f") -> str:
    """A line of a table: what it is, and figures in columns."""
    shown = (f"{value:{form}}" if value is not None else f"{'-':>9}" for value in values)
    return f"{name:<36}" + "".join(shown)


def _stats_rows(value: dict[str, Any]) -> list[str]:
    return [
        _figures("mean (red, green, blue)", value["channel_mean"]),
        _figures("standard deviation", value["channel_std"]),
        _figures("stdev along colour directions", value["eigenstdev"]),
    ]


def stats_lines(value: dict[str, Any]) -> list[str]:
    """``stats_value`` with ``seconds``, ``images_per_second`` and ``out`` -> lines."""
    speed = f"{value['seconds']:.1f} s, {value['images_per_second']} images/s"
    return [
        f"{value['images']} crops of {value['size']} x {value['size']} px: {speed}",
        *_stats_rows(value),
        f"in {value['out']}",
    ]


def show_lines(value: dict[str, Any]) -> list[str]:
    """``stats_figures`` with ``path``, ``image`` and perhaps ``compared`` -> lines."""
    lines = [f"{value['path']}: {value['images']} crops of {value['size']} x {value['size']} px"]
    lines += _stats_rows(value)
    lines += [
        _figures(f"  {name} of each direction", row, "+9.4f")
        for name, row in zip(("red", "green", "blue"), value["eigenvectors"], strict=True)
    ]
    extremes = (value["mean_min"], value["mean_max"])
    lines.append(_figures("mean image, minimum and maximum", extremes))
    for other in value.get("compared", ()):
        file = value["compared_with"]
        lines += ["", f"beside {file if file.endswith(other['name']) else other['name']}"]
        lines += _compared_rows(other)
    return [*lines, "", f"in {value['image']}"]


def _compared_rows(other: dict[str, Any]) -> list[str]:
    rows = []
    if "mean_image" in other:
        image = other["mean_image"]
        differences = (image["max_abs"], image["mean_abs"])
        rows.append(_figures("mean image, largest and mean |diff|", differences))
    for key, name in (("channel_mean", "mean"), ("channel_std", "standard deviation")):
        if key in other:
            rows.append(_figures(f"{name}, theirs", other[key]["theirs"]))
            rows.append(_figures(f"{name}, ours less theirs", other[key]["difference"], "+9.2f"))
    if "eigenstdev" in other:
        rows.append(_figures("stdev along directions, theirs", other["eigenstdev"]["theirs"]))
        rows.append(_figures("ours over theirs", other["eigenstdev"]["ratio"], "9.4f"))
    if "angles" in other:
        rows.append(_figures("angle between directions, degrees", other["angles"]))
    return rows


def beton_value(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The entry of ``build --json`` for one beton file, or for its shards."""
    files = shard_paths(path, manifest.shards) if manifest.set else (path,)
    return {
        "path": shard_pattern(files[0]) if manifest.set else str(path),
        "files": [str(file) for file in files],
        "split": manifest.split,
        "samples": manifest.samples,
        "formats": dict(manifest.formats),
        "bytes": manifest.bytes,
        "digest": manifest.digest,
    }


def build_lines(value: dict[str, Any]) -> list[str]:
    """One line per beton and one for the speed."""
    rows = [
        f"{beton['samples']:>9} samples {beton['bytes'] / 1e6:>10.1f} MB  {beton['path']}"
        + (f" ({len(beton['files'])} files)" if len(beton["files"]) > 1 else "")
        for beton in value["betons"]
    ]
    return [*rows, f"built: {value['seconds']:.1f} s, {value['images_per_second']} images/s"]


def prepare_lines(value: dict[str, Any], report: CropReport, cropped: Path) -> list[str]:
    """What ``prepare`` tells people: the lines of its three stages, or that two had no work."""
    lines = crop_lines(report, cropped)
    if value["up_to_date"]:
        betons = ", ".join(beton["path"] for beton in value["betons"])
        lines.append(f"up to date: {value['stats']['out']}, {betons}")
    else:
        lines += [*stats_lines(value["stats"]), *build_lines(value["build"])]
    return [*lines, f"total: {value['seconds']:.1f} s"]


def index_value(path: Path, index: Index, seconds: float) -> dict[str, Any]:
    """The entry of ``index --json`` for one file; refused: counts of images, by reason, that only
    a CPU decodes."""
    from imagenet_prep.jpeg.core import REASONS

    counts = Counter(index.images["status"].tolist())
    return {
        "path": str(path),
        "images": len(index.images),
        "rows": len(index.positions),
        "refused": {REASONS[s]: counts[s] for s in sorted(counts) if s},
        "seconds": round(seconds, 3),
        "images_per_second": rate(len(index.images), seconds),
    }


def index_lines(values: list[dict[str, Any]]) -> list[str]:
    """One line per index, and one for each reason why images are not for a GPU."""
    lines = []
    for value in values:
        lines.append(
            f"{value['images']:>9} images  {value['path']}  ({value['images_per_second']} images/s)"
        )
        lines += [f"{count:>9} images: {reason}" for reason, count in value["refused"].items()]
    return lines


def verify_value(report: Report, betons: Betons, seconds: float) -> dict[str, Any]:
    """What ``verify --json`` prints."""
    return {
        "path": betons.name,
        "files": len(betons.paths),
        "good": report.good,
        "samples": report.samples,
        "pages": report.pages,
        "decoded": report.decoded,
        "faults": list(report.faults),
        "damaged": [
            {
                "file": damaged.file,
                "sample": damaged.index,
                "key": damaged.key,
                "reason": damaged.reason,
            }
            for damaged in report.damaged
        ],
        "seconds": round(seconds, 3),
    }


def verify_lines(value: dict[str, Any]) -> list[str]:
    """``verify_value`` -> one line when all is intact, else one per fault and damaged sample."""
    if value["good"]:
        images = f"; {value['decoded']} images decode" if value["decoded"] else ""
        return [
            f"{value['path']}: every byte is intact: {value['samples']} samples on "
            f"{value['pages']} pages{images} ({value['seconds']:.1f} s)"
        ]
    several = value["files"] > 1
    samples = (
        (f"{damaged['file']}: " if several else "")
        + f"sample {damaged['sample']:<8} {damaged['key']}: {damaged['reason']}"
        for damaged in value["damaged"]
    )
    return [*value["faults"], *samples]


def info_lines(value: dict[str, Any]) -> list[str]:
    """A value of ``info`` -> a line per member; of many classes the first ones."""
    width = max(map(len, value))
    lines = [f"{name:<{width}}  {plain(x)}" for name, x in value.items() if name != "class_samples"]
    rows = value.get("class_samples", [])
    for row in rows[:_CLASSES_SHOWN]:
        name = f"  {row['name']}" if row["name"] != row["class"] else ""
        lines.append(f"{row['label']:>6} {row['samples']:>9} samples  {row['class']}{name}")
    if len(rows) > _CLASSES_SHOWN:
        counts = [row["samples"] for row in rows]
        lines.append(
            f"       and {len(rows) - _CLASSES_SHOWN} more classes (--json has all); a class has "
            f"{min(counts)} to {max(counts)} samples"
        )
    return lines


def plain(item: Any) -> str:
    """A JSON value on one line, for people."""
    if isinstance(item, dict):
        return ", ".join(f"{name} {plain(part)}" for name, part in item.items())
    if isinstance(item, list):
        return ", ".join(map(plain, item))
    if isinstance(item, bool):
        return "yes" if item else "no"
    if item is None:
        return "-"
    return f"{item:.6g}" if isinstance(item, float) else str(item)
