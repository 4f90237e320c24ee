"""Betons to batches: the loader. Public: ``train_loader`` and ``eval_loader``."""

from trainer.loader.loader import eval_loader, train_loader

__all__ = ["eval_loader", "train_loader"]
