"""When a graph is captured, and for which batches; the capture itself needs a GPU (tests/gpu)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.training.graph import WARM_UP, Graph


class Recorded(Graph):
    """Notes the shapes of calls and captures; a replay gives what the capture gave."""

    def __init__(self) -> None:
        super().__init__(lambda images, labels: images.sum() + labels.sum())
        self.captured: list[tuple[int, ...]] = []
        self.replays = 0

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        self.captured.append(tuple(images.shape))
        self._images, self._labels = torch.empty_like(images), labels.clone()
        self._result = torch.zeros(())
        self._graph: Any = self

    def replay(self) -> None:
        self.replays += 1
        self._result.copy_(self.run(self._images, self._labels))


def call(graph: Graph, count: int, side: int, times: int = 1) -> None:
    for time in range(times):
        images, labels = torch.full((count, 3, side, side), float(time)), torch.arange(count)
        assert graph(images, labels) == images.sum() + labels.sum()


def test_a_graph_is_captured_again_for_another_side() -> None:
    graph = Recorded()
    call(graph, 4, 8, WARM_UP)
    assert graph.captured == []
    call(graph, 4, 8, 5)
    call(graph, 3, 8)  # the last batch of an epoch
    call(graph, 4, 8)
    assert (graph.captured, graph.replays) == ([(4, 3, 8, 8)], 6)
    call(graph, 4, 12, WARM_UP)
    assert (len(graph.captured), graph.replays) == (1, 6)
    call(graph, 4, 12, 2)
    assert (graph.captured, graph.replays) == ([(4, 3, 8, 8), (4, 3, 12, 12)], 8)


def test_a_run_resumed_at_a_smaller_batch_gets_its_graph() -> None:
    graph = Recorded()
    call(graph, 3, 8)
    call(graph, 4, 8, WARM_UP + 1)
    assert graph.captured == [(4, 3, 8, 8)]
