"""Whole runs on a small real beton: what they write, how they resume, what they refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from imagenet_prep.core.errors import ToolError, UsageError, quiet
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.names import stats_beside
from imagenet_prep.dataset.statistics import load_stats, save_stats
from tests.kit.errors import fails
from tests.kit.short_run import PLAIN_SPEC
from tests.trainer.conftest import make_beton
from trainer.checkpoint import load_checkpoint
from trainer.config import presets
from trainer.config.run_config import IMAGENET_MEAN, IMAGENET_STD, RunConfig
from trainer.data import find_data
from trainer.distributed.world import World
from trainer.inference.evaluate import evaluate_beton
from trainer.inference.export import export
from trainer.inference.preprocess import Preparation
from trainer.loader.loader import train_loader
from trainer.network.alexnet import NETWORKS
from trainer.report.metrics import read_metrics
from trainer.training.epoch import training_batches
from trainer.training.run import train
from trainer.training.state import Session

if TYPE_CHECKING:
    from tests.trainer.conftest import Sample

TINY = dataclasses.replace(
    presets.preset("small"),
    network="tiny",
    epochs=2,
    batch_size=8,
    crop_size=56,
    warmup_epochs=0.0,
    device="cpu",
    precision="float32",
    jobs=1,
)


def silent(_: dict[str, Any]) -> None:
    """A report that nobody reads."""


@pytest.fixture
def workplace(small_beton: Sample, tiny_network: str, tmp_path: Path) -> Path:
    """A folder with train.beton and val.beton (the same images) and all beside them."""
    for split in ("train", "val"):
        for suffix in (".beton", ".beton.json", ".stats.npz"):
            source = small_beton.path.with_name("train" + suffix)
            (tmp_path / (split + suffix)).write_bytes(source.read_bytes())
    return tmp_path


def test_a_run_writes_what_the_contract_lists(workplace: Path) -> None:
    rows: list[dict[str, Any]] = []
    folder = workplace / "runs" / "one"
    result = train(
        TINY, workplace / "train.beton", folder, resume=False, report=rows.append, progress=quiet
    )
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "report.html",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert [row["epoch"] for row in rows] == [1, 2]
    keys = {"train_loss", "val_loss", "images_per_second", "wait_share"}
    keys |= {f"{s}_{k}_error" for s in ("train", "val") for k in ("top1", "top5")}
    assert all(keys <= set(row) for row in rows)
    assert all(math.isfinite(row["train_loss"]) for row in rows)
    assert result.best["val_top1_error"] == min(row["val_top1_error"] for row in rows)
    logged = read_metrics(folder)
    assert [row["epoch"] for row in logged if row["kind"] == "epoch"] == [1, 2]
    assert any(row["kind"] == "step" for row in logged)
    config = json.loads((folder / "config.json").read_text())
    assert config["run"]["preset"] == "small"
    assert config["network"]["classes"] == 3


def test_eval_repeats_the_best_epochs_figures(workplace: Path) -> None:
    folder = workplace / "run"
    result = train(
        TINY, workplace / "train.beton", folder, resume=False, report=silent, progress=quiet
    )
    evaluation, _ = evaluate_beton(
        folder / "best.pt",
        workplace / "val.beton",
        device="cpu",
        batch_size=None,
        precision="float32",
        jobs=1,
        progress=quiet,
    )
    found = evaluation.result
    assert found.top1_error == pytest.approx(result.best["val_top1_error"])
    assert found.loss == pytest.approx(result.best["val_loss"], rel=1e-5)
    assert found.images == 25


def test_a_run_without_validation_set_keeps_the_last_epoch(workplace: Path) -> None:
    (workplace / "val.beton").unlink()
    rows: list[dict[str, Any]] = []
    result = train(
        TINY, workplace / "train.beton", workplace / "run", resume=False, report=rows.append,
        progress=quiet,
    )  # fmt: skip
    assert all("val_loss" not in row for row in rows)
    assert result.best["epoch"] == 2


def test_statistics_of_another_size_are_refused(workplace: Path, full_beton: Sample) -> None:
    save_stats(stats_beside(workplace / "train.beton"), full_beton.stats)
    with fails("stats.other_size", "256 px"):
        find_data(workplace / "train.beton")


def test_statistics_of_other_images_are_refused(workplace: Path) -> None:
    beside = stats_beside(workplace / "train.beton")
    found = load_stats(beside)
    save_stats(beside, dataclasses.replace(found, source=found.source[::-1]))
    with pytest.raises(ToolError, match="is not the statistics file that"):
        find_data(workplace / "train.beton")
    with pytest.raises(ToolError, match="is not the statistics file that"):
        train_loader(workplace / "train.beton", batch_size=4, crop_size=56)


def test_a_missing_beton_and_a_folder_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        find_data(tmp_path / "train.beton")
    with pytest.raises(UsageError, match="is a folder"):
        find_data(tmp_path)


def test_a_beton_cut_in_half_is_refused_at_once(workplace: Path) -> None:
    beton = workplace / "train.beton"
    beton.write_bytes(beton.read_bytes()[: beton.stat().st_size // 2])
    with fails("beton.truncated"):
        find_data(beton)


def test_a_loss_that_is_no_number_ends_the_run_with_the_step(workplace: Path) -> None:
    wild = dataclasses.replace(TINY, optimizer="sgd", lr=1e30, clip_norm=0.0)
    with fails("run.diverged", "is not finite", "epoch 1, step ", "--lr"):
        train(
            wild, workplace / "train.beton", workplace / "run", resume=False, report=silent,
            progress=quiet,
        )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"crop_size": 1000}, {"freeze": ("no-such-layer",)}, {"decode": "gpu"}, {"resident": "on"}],
)
def test_a_run_that_cannot_begin_leaves_no_folder(workplace: Path, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(TINY, **changes)
    folder = workplace / "runs" / "one"
    with pytest.raises(UsageError, match=r"--crop-size|no-such-layer|CUDA device"):
        train(
            config, workplace / "train.beton", folder, resume=False, report=silent, progress=quiet
        )
    assert not folder.exists()


def test_a_checkpoint_of_other_settings_is_refused_by_name(
    workplace: Path,
) -> None:
    config = dataclasses.replace(TINY, epochs=1)
    beton, folder = workplace / "train.beton", workplace / "runs" / "one"
    train(config, beton, folder, resume=False, report=silent, progress=quiet)
    for name in ("best.pt", "last.pt"):
        values = torch.load(folder / name, weights_only=True)
        values["config"]["run"]["sharpness"] = 11
        torch.save(values, folder / name)
    with pytest.raises(ToolError, match=r"best\.pt.*sharpness") as refused:
        evaluate_beton(
            folder / "best.pt", beton, device="cpu", batch_size=None, precision="float32",
            jobs=1, progress=quiet,
        )  # fmt: skip
    assert not isinstance(refused.value, UsageError)
    with pytest.raises(ToolError, match=r"last\.pt.*sharpness"):
        train(config, beton, folder, resume=True, report=silent, progress=quiet)


def test_a_validation_set_may_come_between_two_sittings(workplace: Path) -> None:
    folder = workplace / "run"
    for path in workplace.glob("val.*"):
        path.rename(workplace / f"later-{path.name}")
    one = dataclasses.replace(TINY, epochs=1)
    train(one, workplace / "train.beton", folder, resume=False, report=silent, progress=quiet)
    before = (folder / "report.html").read_text()
    for path in workplace.glob("later-val.*"):
        path.rename(workplace / path.name.removeprefix("later-"))
    train(
        TINY, workplace / "train.beton", folder,
        resume=True, force=True, report=silent, progress=quiet,
    )  # fmt: skip
    rows = [row for row in read_metrics(folder) if row["kind"] == "epoch"]
    assert ["val_loss" in row for row in rows] == [False, True]
    assert load_checkpoint(folder / "last.pt").progress["best"]["epoch"] == 2
    assert (folder / "report.html").read_text() != before


def test_the_report_of_a_run_without_validation_is_written_again(workplace: Path) -> None:
    for path in workplace.glob("val.*"):
        path.unlink()
    folder = workplace / "run"
    reports = []
    for epochs in (1, 2):
        config = dataclasses.replace(TINY, epochs=epochs)
        train(
            config, workplace / "train.beton", folder,
            resume=epochs > 1, force=True, report=silent, progress=quiet,
        )  # fmt: skip
        reports.append((folder / "report.html").read_text())
    assert reports[0] != reports[1]


def test_recorded_steps_are_steps_and_not_batches(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.training.run.STEPS_PER_RECORD", 1)
    config = dataclasses.replace(TINY, accumulate=2, batch_size=5, epochs=3)
    train(
        config, workplace / "train.beton", workplace / "run",
        resume=False, report=silent, progress=quiet,
    )  # fmt: skip
    steps = [row["step"] for row in read_metrics(workplace / "run") if row["kind"] == "step"]
    assert len(steps) > 6
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"network": "small", "crop_size": 56, "batch_size": 1}, "config.batch_norm_of_one"),
        ({"freeze": ("features", "classifier")}, "config.all_frozen"),
        ({"network": "small", "crop_size": 56, "start_size": 100}, "config.start_size"),
        ({"start_size": 51}, "config.start_size"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_refused(
    workplace: Path, changes: dict[str, Any], code: str
) -> None:
    config = dataclasses.replace(TINY, **changes)
    with fails(code):
        train(
            config, workplace / "train.beton", workplace / "run",
            resume=False, report=silent, progress=quiet,
        )  # fmt: skip
    assert not (workplace / "run").exists()


def test_more_processes_than_devices_are_an_error(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    world = World()
    world.local_rank = 2
    with fails("device.too_few", "has 2 CUDA devices; give torchrun"):
        Session(
            dataclasses.replace(TINY, device="cuda"), find_data(workplace / "train.beton"), world
        )


def test_resume_without_last_checkpoint_deletes_nothing(workplace: Path) -> None:
    beton, folder = workplace / "train.beton", workplace / "run"
    train(TINY, beton, folder, resume=False, report=silent, progress=quiet)
    stored = load_checkpoint(folder / "best.pt")
    if stored.progress["epochs_done"] == 1:  # the best epoch was the first
        values = torch.load(folder / "best.pt", weights_only=True)
        values["progress"]["epochs_done"] = 2
        torch.save(values, folder / "best.pt")
    (folder / "last.pt").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with fails("run.no_last", "--overwrite", "--weights"):
        train(TINY, beton, folder, resume=True, report=silent, progress=quiet)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_weights_that_diverge_in_the_last_step_are_not_stored(workplace: Path) -> None:
    # One step an epoch: its loss is finite, the weights after it are not.
    wild = dataclasses.replace(TINY, optimizer="sgd", lr=1e38, clip_norm=0.0, batch_size=25)
    with fails("run.diverged", "weights are not finite after step 1", "--lr"):
        train(
            wild, workplace / "train.beton", workplace / "run",
            resume=False, report=silent, progress=quiet,
        )  # fmt: skip
    assert not list((workplace / "run").glob("*.pt"))


def test_a_checkpoint_that_is_not_finite_is_refused(workplace: Path) -> None:
    beton, folder = workplace / "train.beton", workplace / "run"
    one = dataclasses.replace(TINY, epochs=1)
    train(one, beton, folder, resume=False, report=silent, progress=quiet)
    for name in ("best.pt", "last.pt"):
        values = torch.load(folder / name, weights_only=True)
        values["model"]["classifier.1.weight"][0, 0] = math.nan
        torch.save(values, folder / name)
    with fails("checkpoint.not_finite", "last.pt"):
        train(TINY, beton, folder, resume=True, force=True, report=silent, progress=quiet)
    with fails("checkpoint.not_finite", "best.pt", "diverged"):
        evaluate_beton(
            folder / "best.pt", beton, device="cpu", batch_size=None, precision="float32",
            jobs=1, progress=quiet,
        )  # fmt: skip
    with fails("checkpoint.not_finite", "best.pt"):
        export(folder / "best.pt", "safetensors", None)


def test_a_resumed_run_reports_changes_and_why_nothing_is_left(workplace: Path) -> None:
    beton, folder = workplace / "train.beton", workplace / "run"
    one = dataclasses.replace(TINY, epochs=1)
    messages: list[str] = []

    def resume(config: RunConfig) -> None:
        train(
            config, beton, folder, resume=True, force=True, report=silent, progress=quiet,
            notice=messages.append,
        )  # fmt: skip

    train(one, beton, folder, resume=False, report=silent, progress=quiet)
    before = (folder / "config.json").read_bytes()
    resume(dataclasses.replace(one, lr=0.5))
    assert "all 1 epochs are done, nothing is trained" in messages[-1]
    assert (folder / "config.json").read_bytes() == before
    resume(TINY)
    assert "epochs 1 there and 2 here; the learning-rate schedule changes" in messages[-2]
    assert "continues with epoch 2 of 2" in messages[-1]
    errors = load_checkpoint(folder / "last.pt").progress["errors"]
    if errors[1] >= errors[0]:  # patience has ended the run
        resume(dataclasses.replace(TINY, epochs=5, patience=1))
        assert "has not fallen for 1 epochs (--patience)" in messages[-1]


def test_checkpoints_of_epochs_are_kept_as_asked(workplace: Path) -> None:
    config = dataclasses.replace(TINY, epochs=4, keep=1, keep_every=2)
    folder = workplace / "run"
    train(config, workplace / "train.beton", folder, resume=False, report=silent, progress=quiet)
    kept = {path.name: load_checkpoint(path) for path in folder.glob("epoch-*.pt")}
    assert sorted(kept) == ["epoch-0002.pt", "epoch-0004.pt"]
    assert kept["epoch-0002.pt"].progress["epochs_done"] == 2
    assert kept["epoch-0002.pt"].optimizer is not None


def test_a_checkpoint_is_due_after_minutes(workplace: Path) -> None:
    seen: list[bool] = []
    folder = workplace / "run"

    def progress(what: str, done: int, total: int) -> None:
        seen.append((folder / "last.pt").exists())

    config = dataclasses.replace(TINY, epochs=1, checkpoint_minutes=1e-6)
    train(config, workplace / "train.beton", folder, resume=False, report=silent, progress=progress)
    assert seen[:2] == [False, True]


def test_further_validation_sets_are_evaluated_by_name(workplace: Path) -> None:
    for suffix in (".beton", ".beton.json", ".stats.npz"):
        (workplace / f"val{suffix}").rename(workplace / f"mine{suffix}")
    mine = workplace / "mine.beton"
    rows: list[dict[str, Any]] = []
    train(
        dataclasses.replace(TINY, epochs=1), workplace / "train.beton", workplace / "run",
        resume=False, report=rows.append, progress=quiet, validation=(str(mine), f"v2={mine}"),
    )  # fmt: skip
    assert rows[0]["v2_top1_error"] == rows[0]["val_top1_error"]
    assert rows[0]["v2_loss"] == pytest.approx(rows[0]["val_loss"])
    for names in ((str(mine), str(mine)), (f"val={mine}",)):
        with fails("data.validation_names", usage=True):
            find_data(workplace / "train.beton", names)


def test_symbolic_links_and_betons_of_other_tools(workplace: Path) -> None:
    (workplace / "links").mkdir()
    link = workplace / "links" / "train.beton"
    link.symlink_to(workplace / "train.beton")
    assert find_data(link).manifest == find_data(workplace / "train.beton").manifest
    other = workplace / "other.beton"
    other.write_bytes((workplace / "train.beton").read_bytes())
    with fails("beton.foreign", f"imagenet-prep crop --src {other}"):
        find_data(other)


def test_a_new_time_of_the_beton_file_is_no_change(workplace: Path) -> None:
    beton = workplace / "train.beton"

    def touch(what: str, done: int, total: int) -> None:
        os.utime(beton)

    train(TINY, beton, workplace / "run", resume=False, report=silent, progress=touch)
    assert load_checkpoint(workplace / "run" / "last.pt").progress["epochs_done"] == 2


def test_a_changed_beton_file_ends_the_run_with_a_checkpoint(workplace: Path) -> None:
    beton, folder = workplace / "train.beton", workplace / "run"
    whole = beton.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1

    def change(what: str, done: int, total: int) -> None:
        if what.startswith("epoch 2"):
            beton.write_bytes(changed)

    config = dataclasses.replace(TINY, batch_size=2)
    with fails("beton.changed", str(beton), "a checkpoint is written", "--resume"):
        train(config, beton, folder, resume=False, report=silent, progress=change)
    stored = load_checkpoint(folder / "last.pt")
    assert stored.progress["epochs_done"] == 1
    assert stored.partial is not None
    beton.write_bytes(whole)
    train(config, beton, folder, resume=True, report=silent, progress=quiet)
    train(config, beton, workplace / "other", resume=False, report=silent, progress=quiet)
    ours, theirs = (load_checkpoint(f / "last.pt").model for f in (folder, workplace / "other"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_set_of_one_image_or_one_class_trains(
    tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "plain", PLAIN_SPEC)
    one = dataclasses.replace(TINY, epochs=1)
    image = make_beton(tmp_path, 1, 64).path
    with fails("run.too_few_images", "1 image", "--network"):
        train(one, image, tmp_path / "a", resume=False, report=silent, progress=quiet)
    (tmp_path / "class").mkdir()
    single = make_beton(tmp_path / "class", 4, 64, names=Classes(("ant",), {})).path
    for beton, network in ((image, "plain"), (single, "tiny")):
        config = dataclasses.replace(one, network=network)
        result = train(
            config, beton, tmp_path / network, resume=False, report=silent, progress=quiet
        )
        assert math.isfinite(result.rows[0]["train_loss"])


def test_pixels_are_prepared_with_given_means_and_deviations(workplace: Path) -> None:
    own = dataclasses.replace(TINY, epochs=1, mean="imagenet", scaled=True)
    folder = workplace / "run"
    train(own, workplace / "train.beton", folder, resume=False, report=silent, progress=quiet)
    data = find_data(workplace / "train.beton")
    with training_batches(Session(own, data, World())) as batches:
        images = next(iter(batches)).images
        levels = images * torch.tensor(IMAGENET_STD)[:, None, None]
        levels += torch.tensor(IMAGENET_MEAN)[:, None, None]
    config = dataclasses.replace(own, mean="none", scaled=False)
    with training_batches(Session(config, data, World())) as batches:
        assert torch.allclose(next(iter(batches)).images, levels, atol=1e-3)
    prepare = Preparation.of(own, data.stats, 67)
    assert prepare.described(None)["divide_by"] == pytest.approx(IMAGENET_STD)
