"""Betons to batches: the loader."""
