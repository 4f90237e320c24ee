"""Which back end makes the batches: the CPU's, the host's for a device, or the device itself."""

from __future__ import annotations

import logging
from typing import Any

import torch

from imagenet_prep.core.errors import ToolError
from imagenet_prep.dataset.beton_tables import BetonInfo
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.dataset.statistics import Stats
from trainer.loader.checks import Reading, usable_threads
from trainer.loader.cpu import CpuBackend
from trainer.loader.device import HostBackend
from trainer.loader.iterator import Backend
from trainer.views.views import Views

_TOLD: set[str] = set()


def make_backend(
    betons: Betons,
    info: BetonInfo,
    stats: Stats,
    views: Views,
    reading: Reading,
    device: torch.device,
    batch_size: int,
) -> tuple[Backend, str]:
    """-> (the back end, where it decodes: "cpu" or "gpu")."""
    threads = usable_threads(reading.jobs)
    slots = reading.batches_ahead + 2
    how: dict[str, Any] = {
        "batch_size": batch_size,
        "slots": slots,
        "jobs": threads,
        "layout": reading.layout,
    }
    if reading.decode == "gpu" or (reading.decode == "auto" and not on_host(device)):
        from trainer.loader.cuda import CudaBackend, UnusableError

        try:
            return CudaBackend(betons, info, stats, views, reading, **how, device=device), "gpu"
        except torch.OutOfMemoryError as error:
            raise ToolError(
                "loader.device_memory",
                f"{betons}: the loader's buffers do not fit into the memory of {device}: "
                f"{str(error).splitlines()[0]} Use a smaller batch_size, or resident='off'.",
            ) from None
        except UnusableError as error:
            if reading.decode == "gpu" or reading.resident == "on":
                raise
            if str(error) not in _TOLD:
                _TOLD.add(str(error))
                logging.getLogger("trainer.loader").warning("decoding on the CPU: %s", error)
    if on_host(device):
        return CpuBackend(info, stats, views, **how), "cpu"
    return HostBackend(info, stats, views, **how, device=device), "cpu"


def on_host(device: torch.device) -> bool:
    """Whether batches are used where they are made."""
    return device.type == "cpu"
