"""Checkpoints: what goes in comes out, and nothing else is ever taken for one."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagenet_prep.core.errors import ToolError, UsageError
from imagenet_prep.core.files import file_digest
from imagenet_prep.dataset.classes import Classes
from imagenet_prep.dataset.statistics import Stats, save_stats
from tests.kit.errors import fails
from trainer.checkpoint import Checkpoint, check_classes, load_checkpoint, save_checkpoint

CLASSES = Classes(("n01", "n02"), {"n01": "ant", "n02": "bee"})


def small_stats(size: int = 8) -> Stats:
    """Exact statistics of ten made images."""
    rng = np.random.default_rng(0)
    total = rng.integers(0, 2550, (size, size, 3)).astype(np.uint64)
    vectors = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    values = np.array([1.0, 4.0, 9.0])
    return Stats(
        mean=(total / np.float64(10)).astype(np.float32),
        sum=total,
        products=np.full((3, 3), 2**63 + 5, dtype=np.uint64),
        count=10,
        channel_mean=np.array([1.0, 2.0, 3.0]),
        channel_std=np.ones(3),
        covariance=np.eye(3),
        eigenvalues=values,
        eigenstdev=np.sqrt(values),
        eigenvectors=vectors,
        source="abc",
        coverage=("train", "0:10"),
    )


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A network and an optimiser that has taken a step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def write(path: Path, **changes: Any) -> Path:
    """A checkpoint with everything in it."""
    model, optimizer = trained()
    values: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None,
        "progress": {"epoch": np.int64(3), "step": 12, "best": {"val_top1_error": 20.5}},
        "partial": None,
        "config": {"run": {"lr": 0.01, "widths": (1, 2), "jobs": None}},
        "classes": CLASSES,
        "stats": small_stats(),
        "environment": {"threads": 2, "cuda": None},
    }
    save_checkpoint(path, **(values | changes))
    return path


def rewrite(path: Path, change: Any) -> Path:
    """Changes what is inside the archive of a checkpoint."""
    payload = torch.load(path, weights_only=True)
    change(payload)
    torch.save(payload, path)
    return path


def refused(path: Path) -> str:
    """The message of the error for ``path``; one line that names the file."""
    with pytest.raises(ToolError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert caught.value.code.startswith("checkpoint.")
    assert "\n" not in text
    assert text.startswith(str(path))
    assert len(text) < len(str(path)) + 200
    return text


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    model, optimizer = trained()
    average = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    found = load_checkpoint(write(tmp_path / "last.pt", average=average))
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.model[name], tensor)
        assert found.average is not None
        assert torch.equal(found.average[name], tensor + 1)
    assert found.progress == {"epoch": 3, "step": 12, "best": {"val_top1_error": 20.5}}
    assert found.config == {"run": {"lr": 0.01, "widths": (1, 2), "jobs": None}}
    assert found.classes == CLASSES
    assert found.environment == {"threads": 2, "cuda": None}
    assert found.stats.size_px == 8
    for name in Stats.__dataclass_fields__:
        given, got = getattr(small_stats(), name), getattr(found.stats, name)
        assert np.array_equal(given, got), name
        assert getattr(given, "dtype", None) == getattr(got, "dtype", None)
    assert np.array_equal(found.stats.mean, small_stats().mean)
    optimizer.load_state_dict(found.optimizer or {})


def test_model_is_a_state_dict_that_a_safe_load_gives_back(tmp_path: Path) -> None:
    path = write(tmp_path / "best.pt")
    fresh, _ = trained()
    torch.nn.init.zeros_(next(fresh.parameters()))
    fresh.load_state_dict(torch.load(path, weights_only=True)["model"])
    assert torch.equal(next(fresh.parameters()), next(trained()[0].parameters()))


def test_the_digest_is_that_of_the_statistics_file(tmp_path: Path) -> None:
    save_stats(tmp_path / "stats.npz", small_stats())
    found = load_checkpoint(write(tmp_path / "best.pt"))
    assert found.stats_digest == file_digest(tmp_path / "stats.npz")
    assert found.stats.source == "abc"


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.pt"), write(tmp_path / "b.pt")
    assert first.read_bytes() == second.read_bytes()


def test_a_view_does_not_drag_its_storage_along(tmp_path: Path) -> None:
    large = torch.zeros(1_000_000)
    path = write(tmp_path / "a.pt", model={"few": large[:10]})
    assert path.stat().st_size < 100_000
    assert load_checkpoint(path).model["few"].shape == (10,)


def test_an_unsafe_save_fails_and_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt")
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"checkpoint\.config\.where: a PosixPath"):
        write(path, config={"where": Path("x")})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ToolError, match="file: is not a folder"):
        write(tmp_path / "file" / "a.pt")


def test_a_missing_file_and_a_folder_are_wrong_usage(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no.pt", "no such"), (tmp_path, "folder")):
        with pytest.raises(UsageError, match=reason):
            load_checkpoint(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a CUDA device")
def test_a_device_that_is_not_there_is_not_called_damage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        load_checkpoint(write(tmp_path / "a.pt"), "cuda")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint\n", b"PK", b"PK\x03\x04", b"\x80\x02}"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    assert "checkpoint" in refused(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "truncated" in refused(path) or "wrong digest" in refused(path)


def test_no_changed_byte_of_a_weight_passes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", model={"w": torch.arange(64.0)})
    raw = bytearray(path.read_bytes())
    at = bytes(raw).index(torch.arange(64.0).numpy().tobytes()) + 100
    raw[at] ^= 1
    path.write_bytes(raw)
    assert "damaged" in refused(path)


def test_flipped_bytes_anywhere_raise_only_a_tool_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt")
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    for at in [*rng.integers(0, len(whole), 60), *range(len(whole) - 60, len(whole), 3)]:
        raw = bytearray(whole)
        raw[at] ^= 0xFF
        path.write_bytes(raw)
        try:
            load_checkpoint(path)
            outcomes["read"] += 1  # padding and time stamps are nobody's data
        except ToolError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0


class _Trap:
    """Runs code when a careless reader unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_is_refused_without_running_it(tmp_path: Path) -> None:
    mark, bare, wrapped = tmp_path / "ran", tmp_path / "bare.pt", tmp_path / "wrapped.pt"
    bare.write_bytes(pickle.dumps(_Trap(mark)))
    torch.save({"kind": _Trap(mark)}, wrapped)
    assert "is not a checkpoint" in refused(bare)
    assert "opened safely" in refused(wrapped)
    assert not mark.exists()


def test_bare_weights_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "alexnet.pth"
    torch.save(trained()[0].state_dict(), path)
    assert "bare weights" in refused(path)
    torch.save([1, 2], path)
    assert "not a checkpoint of this trainer" in refused(path)


@pytest.mark.parametrize(("found", "age"), [(1, "older"), (None, "older"), (3, "newer")])
def test_another_format_is_told_from_damage(tmp_path: Path, found: object, age: str) -> None:
    path = rewrite(write(tmp_path / "a.pt"), lambda payload: payload.update(format=found))
    assert f"{age} version (format {found}, this one reads 2)" in refused(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda payload: payload.pop("config"), "'config' is missing"),
        (lambda payload: payload["stats"].pop("mean"), "'mean' is missing"),
        (lambda payload: payload["stats"].update(size=9), "mean has not the shape"),
        (lambda payload: payload.update(model=[1]), "model is not a dict"),
        (lambda payload: payload["model"].update(x=1), "model is not a state dict"),
        (lambda payload: payload.update(classes=None), "damaged"),
    ],
)
def test_what_lacks_something_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    assert reason in refused(rewrite(write(tmp_path / "a.pt"), change))


def test_classes_must_be_those_of_the_beton(tmp_path: Path) -> None:
    found: Checkpoint = load_checkpoint(write(tmp_path / "a.pt"))
    check_classes(found, Classes(("n01", "n02"), {}))
    with pytest.raises(ToolError, match=r"a\.pt: was trained with 2 classes, the beton file has 3"):
        check_classes(found, Classes(("n01", "n02", "n03"), {}))
    with pytest.raises(ToolError, match=r"class 0 = n01, in the beton file it is n02"):
        check_classes(found, Classes(("n02", "n01"), {}))


def test_a_full_disk_is_one_error_and_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = write(tmp_path / "last.pt")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with fails("checkpoint.write", str(path), "free some space"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_weights_that_are_not_finite_are_found(tmp_path: Path) -> None:
    broken = {"w": torch.tensor([1.0, torch.inf]), "count": torch.tensor(3)}
    load_checkpoint(write(tmp_path / "a.pt", model={"w": torch.ones(2)})).check_finite()
    for changes in ({"model": broken}, {"average": broken}):
        with fails("checkpoint.not_finite", "a.pt: w"):
            load_checkpoint(write(tmp_path / "a.pt", **changes)).check_finite()


def test_checkpoints_of_earlier_versions_without_digest_load(tmp_path: Path) -> None:
    path = rewrite(write(tmp_path / "a.pt"), lambda payload: None)
    assert b"sha256:" not in path.read_bytes()
    assert load_checkpoint(path).progress["step"] == 12
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert "damaged" in refused(path)
