"""The report: one complete file that needs no network and escapes all names."""

from __future__ import annotations

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trainer.report.charts import Reference, charts, published_reference
from trainer.report.gallery import Tile
from trainer.report.html import write_report

NASTY = '<script>alert("x")</script> & $x^2$'
VOID = {"meta", "img", "path", "rect", "circle"}


class Page(HTMLParser):
    """Collects ids, links, tags and text; notes elements that are closed wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rows(count: int, validation: bool = True) -> list[dict[str, Any]]:
    """A run whose error falls by one percent an epoch until the last, which is worse."""
    found = []
    for epoch in range(1, count + 1):
        error = 95.0 - min(epoch, max(count - 1, 1))
        row: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": 5.0 / epoch,
            "train_top1_error": error - 2,
            "train_top5_error": error / 2,
            "lr": 0.01 * 0.1 ** (epoch // 30),
            "images_per_second": 1234.0,
            "wait_share": 0.25,
            "seconds": 61.0,
        }
        if epoch == count and count > 1:
            error += 0.5
        if validation:
            row |= {"val_loss": 6.0 / epoch, "val_top1_error": error, "val_top5_error": error / 3}
        found.append(row)
    return found


def page(folder: Path, **changes: Any) -> Page:
    """Writes a report and reads it back."""
    values: dict[str, Any] = {
        "config": {"run": {"epochs": 2, "jobs": None}},
        "rows": [],
        "classes": ["ant", "bee"],
        "kernels": None,
        "environment": {"threads": 2},
        "confusion": None,
    }
    path = write_report(folder, **(values | changes))
    assert path == folder / "report.html"
    found = Page(path.read_text(encoding="utf-8"))
    assert found.wrong == []
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    return found


def matrix(size: int) -> NDArray[np.int64]:
    return np.eye(size, dtype=np.int64) * 9 + np.eye(size, k=1, dtype=np.int64)


@pytest.mark.parametrize(("count", "validation"), [(1, False), (2, True), (90, True)])
def test_any_number_of_epochs_gives_four_charts(
    tmp_path: Path, count: int, validation: bool
) -> None:
    found = page(tmp_path, rows=rows(count, validation))
    drawn = re.findall(r'role="img" aria-label="([^"]+)"', found.source)
    assert drawn == [
        f"{title} by epoch" for title in ("Loss", "Error", "Learning rate", "Speed and waiting")
    ]
    assert ("val top-1 (%)" in found.text) == validation


def test_the_summary_names_the_best_epoch(tmp_path: Path) -> None:
    summary = page(tmp_path, rows=rows(4), classes=list("abcdef")).text
    assert (
        "AlexNet on 6 classes: 92.00 % top-1 and 30.67 % top-5 error on the validation set at "
        "epoch 3 of 4, the best one; 4 min 4 s of training at 1,234 images/s."
    ) in summary


def test_five_classes_have_no_top_5_error(tmp_path: Path) -> None:
    found = page(tmp_path, rows=rows(4), classes=list("abcde"))
    assert "AlexNet on 5 classes: 92.00 % top-1 error on the validation set" in found.text
    assert "top-5" not in found.text


def test_a_run_without_an_epoch_has_a_report(tmp_path: Path) -> None:
    found = page(tmp_path, rows=[{"kind": "step", "epoch": 1, "train_loss": 3.0}])
    assert "No epoch has finished yet." in found.text
    assert "svg" not in found.tags


def test_values_that_are_missing_or_not_finite_are_gaps(tmp_path: Path) -> None:
    broken = [*rows(2), {"epoch": 3, "train_loss": None, "val_top1_error": float("nan"), "lr": 0}]
    found = page(tmp_path, rows=broken)
    assert "at epoch 1 of 3, the best one" in found.text
    assert "nan" not in found.text


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    found = page(tmp_path, rows=rows(2), kernels=np.zeros((4, 5, 3), np.uint8), confusion=matrix(2))
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert "://" not in found.source
    assert "script" not in found.tags
    assert "@import" not in found.source
    assert "prefers-color-scheme:dark" in found.source


def test_curves_are_drawn_to_scale_with_gaps() -> None:
    shown = [{"epoch": e, "lr": lr} for e, lr in ((1, 1.0), (2, 0.5), (3, None), (4, 0.0))]
    panel = charts(shown, None)[2]["panels"][0]
    (curve,) = panel["curves"]
    (x1, top), (x2, half), (_, zero) = curve["points"]
    assert curve["path"] == f"M{x1:g} {top:g}L{x2:g} {half:g}M{curve['points'][2][0]:g} {zero:g}"
    assert zero == panel["bottom"]
    assert half == pytest.approx((top + zero) / 2, abs=0.1)
    assert panel["ticks"][0] == (zero, "0")
    assert (half, "0.5") not in panel["ticks"]  # ticks are multiples of 0.2


def test_a_rate_that_falls_by_factors_has_a_logarithmic_axis() -> None:
    panel = charts(rows(90), None)[2]["panels"][0]
    (heights,) = [[y for y, _ in panel["ticks"]]]
    assert [text for _, text in panel["ticks"]] == ["1e-05", "0.0001", "0.001", "0.01"]
    assert np.ptp(np.diff(heights)) < 0.3


def test_everything_is_escaped(tmp_path: Path) -> None:
    found = page(
        tmp_path / "a<b>&",
        config={NASTY: NASTY, "list": [NASTY]},
        environment={"cpu": {NASTY: NASTY}},
        classes=[NASTY, "蜂"],
        confusion=matrix(2),
    )
    assert "script" not in found.tags
    assert found.text.startswith("a<b>&")
    assert found.text.count(NASTY) >= 5
    assert "蜂" in found.text


def test_the_kernels_are_embedded_as_they_are(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    found = page(tmp_path, kernels=image)
    (link,) = [link for link in found.links if link.startswith("data:image/png;base64,")]
    read = Image.open(io.BytesIO(base64.b64decode(link.split(",", 1)[1])))
    assert np.array_equal(np.asarray(read), image)


def test_the_confusion_is_drawn_and_counted(tmp_path: Path) -> None:
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 4, 5]])
    found = page(tmp_path, classes=["ant", "bee", "cat"], confusion=counts)
    assert found.tags.count("svg") == 1
    assert "true cat, predicted bee: 4 (40.0%)" in found.text
    assert "true ant, predicted cat" not in found.text
    table = found.text[found.text.index("Accuracy by class") :]
    assert table.index("cat 10 5 50.0% bee (4)") < table.index("ant 10 8 80.0% bee (2)")
    assert table.index("ant 10 8") < table.index("bee 0 0 – –")


@pytest.mark.parametrize(("size", "drawn"), [(1, True), (50, True), (51, False), (1000, False)])
def test_a_matrix_of_many_classes_is_left_to_the_table(
    tmp_path: Path, size: int, drawn: bool
) -> None:
    names = [f"class {index}" for index in range(size)]
    found = page(tmp_path, classes=names, confusion=matrix(size))
    assert ("svg" in found.tags) == drawn
    assert ("too large to draw" in found.text) != drawn
    assert f"class {size - 1} 9 9 100.0% –" in found.text


def test_a_confusion_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="for 2 classes"):
        page(tmp_path, confusion=matrix(3))


def test_configuration_and_environment_are_readable(tmp_path: Path) -> None:
    found = page(
        tmp_path,
        config={"run": {"lr": 3e-4, "compile": True, "jobs": None, "betas": (0.9, 0.999)}},
        environment={"cpu": {"model": "A CPU", "flags": {"avx2": True, "amx": False}}},
    )
    for line in (
        "run.lr 0.0003",
        "run.compile yes",
        "run.jobs –",
        "run.betas 0.9, 0.999",
        "cpu.model A CPU",
        "cpu.flags avx2",
    ):
        assert line in found.text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for _ in range(2):
        page(tmp_path, rows=rows(2), confusion=matrix(2), kernels=np.ones((3, 3, 3), np.uint8))
        written.append((tmp_path / "report.html").read_bytes())
    assert written[0] == written[1]


def test_best_and_worst_predictions_are_images_with_classes(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 3), 90, np.uint8)
    found = page(
        tmp_path,
        worst=[Tile(pixels, ("✗ ant", f"88% {NASTY}"), right=False)],
        best=[Tile(pixels, ("✓ bee", "99% bee"), right=True)],
    )
    assert f"Worst predictions ✗ ant 88% {NASTY}" in found.text
    assert "Best predictions ✓ bee 99% bee" in found.text
    images = [link for link in found.links if link.startswith("data:image/jpeg;base64,")]
    assert len(images) == 2
    with Image.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2]))) as image:
        assert image.size == (112, 112)


def test_a_reference_is_drawn_and_named_up_to_the_last_epoch(tmp_path: Path) -> None:
    other = Reference("others", {"val_loss": (9.0, 8.0, 7.0)})
    found = page(tmp_path, rows=rows(2), reference=other)
    assert "validation: others" in found.text
    (curve,) = [
        c for c in charts(rows(2), None, other)[0]["panels"][0]["curves"] if "others" in c["label"]
    ]
    assert curve["path"].count("L") == 1


def test_the_published_curve_is_the_log_that_was_published(shared_reference: Path) -> None:
    with (shared_reference / "imagenet_training_curve.csv").open() as file:
        logged = list(csv.DictReader(file))
    columns = {"train_loss": "train_loss", "val_loss": "val_loss"}
    columns |= {f"val_top{k}_error": f"val_top{k}err" for k in (1, 5)}
    values = published_reference().values
    assert set(values) == set(columns)
    for ours, theirs in columns.items():
        assert values[ours] == [float(row[theirs]) for row in logged]
