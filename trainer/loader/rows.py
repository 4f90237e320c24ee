"""The row index of a data set: read beside its betons, or made where it is missing."""

from __future__ import annotations

from imagenet_prep.core.errors import Progress
from imagenet_prep.dataset import rows
from imagenet_prep.dataset.shards import Betons
from imagenet_prep.jpeg.index import Index, join


def open_rows(betons: Betons, jobs: int, progress: Progress) -> Index:
    """The row index of all files of a set, in the order of their samples.

    Where one is missing or of another build of the file, it is made by ``jobs`` threads and kept
    beside the beton if that can be written. Raises ToolError where a beton cannot be read.
    """
    found = [
        rows.open_rows(path, bytes.fromhex(manifest.digest), jobs, progress)
        for path, manifest in zip(betons.paths, betons.manifests, strict=True)
    ]
    return found[0] if len(found) == 1 else join(found)
