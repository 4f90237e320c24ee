"""The preparation of an image for the network: applied here, described for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from imagenet_prep.dataset.statistics import Stats
from trainer.config.run_config import RunConfig
from trainer.views.views import Views, gain_of, mean_of

_FIT = {
    "shortest": "the short side to size, antialiased; then the central square",
    "squash": "both sides to size, whatever the shape, antialiased",
}


@dataclass(frozen=True, eq=False)
class Preparation:
    """The centre view of a crop of ``size_px``: cut, minus the mean, times the gain, resampled.

    ``mean`` is (S, S, 3) float32 in levels of 0-255, ``gain`` (3,) float32; ``kind`` and
    ``scaled`` are the settings that they come from.
    """

    mean: Tensor
    gain: Tensor
    crop_size: int
    out_size: int
    kind: str
    scaled: bool

    @staticmethod
    def of(config: RunConfig, stats: Stats, out_size: int) -> Preparation:
        """The preparation of ``config`` in an evaluation, for a network of ``out_size`` pixels."""
        views = Views(
            config.crop_size, out_size, "centre", mean=config.pixel_mean, std=config.pixel_std,
            scaled=config.scaled,
        )  # fmt: skip
        return Preparation(
            torch.from_numpy(mean_of(views, stats.mean)),
            torch.from_numpy(gain_of(views, stats.channel_std)),
            config.crop_size,
            out_size,
            config.mean,
            config.scaled or config.pixel_std is not None,
        )

    @property
    def size_px(self) -> int:
        """The side of the crops that it takes."""
        return int(self.mean.shape[0])

    def window(self) -> slice:
        """The position of the centre view, along either side."""
        start = (self.size_px - self.crop_size) // 2
        return slice(start, start + self.crop_size)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(S, S, 3) uint8 RGB -> (3, out, out) float32, as the loader makes it: resampling is
        antialiased and bilinear."""
        at = self.window()
        levels = ((pixels.to(torch.float32) - self.mean) * self.gain)[at, at].permute(2, 0, 1)
        if self.out_size == self.crop_size:
            return levels
        resampled = functional.interpolate(
            levels[None], size=(self.out_size, self.out_size), mode="bilinear", antialias=True
        )
        return resampled[0]

    def described(self, mean_file: str | None, fit: str = "shortest") -> dict[str, Any]:
        """The same in words and numbers, for another program; ``mean_file`` beside it, ``fit``
        as in ``imagenet_prep.dataset.crop_settings``."""
        at = self.window()
        if self.kind in ("image", "centre"):
            mean: dict[str, Any] = {"kind": "image", "file": mean_file, "shape": "H W C"}
        else:
            mean = {"kind": self.kind, "levels": self.mean[0, 0].tolist()}
        return {
            "colour": "RGB",
            "units": "levels of 0-255, not scaled to 0-1",
            "resize": {
                "size": self.size_px,
                "how": f"{_FIT[fit]}; imagenet-prep crop does it",
            },
            "crop": {"size": self.crop_size, "from": at.start, "to": at.stop, "where": "centre"},
            "mean": mean,
            "divide_by": (1 / self.gain).tolist() if self.scaled else None,
            "resample": None
            if self.out_size == self.crop_size
            else {"size": self.out_size, "how": "bilinear, antialiased, after the subtraction"},
            "steps": "resize, crop, subtract the mean at the same pixels, divide, resample, "
            "then channels first: float32 (N, 3, size, size)",
        }
