"""Outcomes -> what the command line says of them: JSON values and lines. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagenet_prep.artifacts import Stats
    from imagenet_prep.crop_stage import CropReport

_REASONS_SHOWN = 12


def rate(images: int, seconds: float) -> float:
    """Images per second, to a tenth; 0 where no time passed."""
    return round(images / seconds, 1) if seconds > 0 else 0.0


def crop_value(report: CropReport) -> dict[str, Any]:
    """What ``crop --json`` prints."""
    return {
        "ok": report.ok,
        "failed": report.failed,
        "skipped": report.skipped,
        "seconds": round(report.seconds, 3),
        "images_per_second": round(report.images_per_second, 1),
        "reasons": report.reasons,
        "remarks": report.remarks,
    }


def crop_lines(report: CropReport, dst: Path) -> list[str]:
    """The outcome of a crop for people: counts, speed, and failures by reason."""
    speed = f", {report.images_per_second:.1f} images/s" if report.tried else ""
    lines = [
        f"{report.ok} cropped, {report.skipped} were there already, {report.failed} failed: "
        f"{report.seconds:.1f} s{speed}"
    ]
    shown = list(report.reasons.items())[:_REASONS_SHOWN]
    lines.extend(f"{count:>8}  {reason}" for reason, count in shown)
    if len(report.reasons) > len(shown):
        lines.append(f"          and {len(report.reasons) - len(shown)} more reasons")
    lines.extend(f"{count:>8}  {remark}" for remark, count in report.remarks.items())
    if report.failed:
        lines.append(f"          imagenet-prep failures {dst} lists them")
    return lines


def stats_value(result: Stats) -> dict[str, Any]:
    """The figures of statistics that fit on a line, in levels."""
    return {
        "images": result.count,
        "size": result.size_px,
        "channel_mean": [float(x) for x in result.channel_mean],
        "channel_std": [float(x) for x in result.channel_std],
        "eigenstdev": [float(x) for x in result.eigenstdev],
    }


def stats_lines(value: dict[str, Any]) -> list[str]:
    """``stats_value`` with ``seconds``, ``images_per_second`` and ``out`` -> lines."""

    def row(name: str, key: str) -> str:
        return f"{name:<34}" + "".join(f"{x:9.2f}" for x in value[key])

    speed = f"{value['seconds']:.1f} s, {value['images_per_second']} images/s"
    return [
        f"{value['images']} crops of {value['size']} x {value['size']} px: {speed}",
        row("mean (red, green, blue)", "channel_mean"),
        row("standard deviation", "channel_std"),
        row("along the colour directions", "eigenstdev"),
        f"in {value['out']}",
    ]


def build_lines(value: dict[str, Any]) -> list[str]:
    """One line per beton and one for the speed."""
    rows = [
        f"{beton['samples']:>9} samples {beton['bytes'] / 1e6:>10.1f} MB  {beton['path']}"
        for beton in value["betons"]
    ]
    return [*rows, f"built: {value['seconds']:.1f} s, {value['images_per_second']} images/s"]


def plain(item: Any) -> str:
    """A JSON value on one line, for people."""
    if isinstance(item, dict):
        return ", ".join(f"{name} {plain(part)}" for name, part in item.items())
    if isinstance(item, list):
        return ", ".join(map(plain, item))
    if isinstance(item, bool):
        return "yes" if item else "no"
    return f"{item:.2f}" if isinstance(item, float) else str(item)
