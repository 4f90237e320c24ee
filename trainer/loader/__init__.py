"""Betons to batches: the loader. ``train_loader`` and ``eval_loader`` are its public face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.loader.loader import Batch, BetonLoader, eval_loader, train_loader

__all__ = ["Batch", "BetonLoader", "eval_loader", "train_loader"]


def __getattr__(name: str) -> Any:
    """Loads torch and numba when a loader is asked for, not before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trainer.loader import loader

    return getattr(loader, name)
