"""The layer table of a network: shapes, parameters, arithmetic, memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.network.alexnet import AlexNet, NetworkSpec


@dataclass(frozen=True)
class LayerRow:
    """One line of the layer table: output shape without the batch, parameters, MACs."""

    layer: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """The layer table with totals; memory in bytes, activations for one image."""

    rows: tuple[LayerRow, ...]
    parameters: int
    multiply_adds: int
    weight_bytes: int
    activation_bytes: int

    def training_bytes(self, batch_size: int, *, moments: int = 2) -> int:
        """Weights, gradients and ``moments`` optimiser buffers, plus twice the activations
        of a batch (values kept for the backward pass and their gradients)."""
        return self.weight_bytes * (2 + moments) + 2 * batch_size * self.activation_bytes


def summarise(spec: NetworkSpec) -> Summary:
    """The layer table of ``spec``: of one image through weights that are not set."""
    with torch.device("meta"):
        model = AlexNet(spec)
    rows: OrderedDict[str, LayerRow] = OrderedDict()
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        shape = tuple(output.shape[1:])
        macs = 0
        if isinstance(module, nn.Conv2d):
            macs = module.weight.numel() * shape[1] * shape[2]
        elif isinstance(module, nn.Linear):
            macs = module.weight.numel()
        name, kind = names[module], type(module).__name__
        rows[name] = LayerRow(name, kind, shape, parameters, macs)

    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    model.eval()
    # Not on "meta": operations on it import torch's compiler, which takes over a second.
    model.to_empty(device="cpu")
    with torch.no_grad():
        model(torch.zeros(1, spec.channels, spec.input_size, spec.input_size))
    for hook in hooks:
        hook.remove()
    table = tuple(row for row in rows.values() if row.kind != "Identity")
    parameters = sum(p.numel() for p in model.parameters())
    # In-place ReLU and dropout in evaluation make no new array.
    kept = [row for row in table if row.kind not in ("ReLU", "Dropout")]
    activation = sum(torch.Size(row.output).numel() for row in kept) * 4
    return Summary(
        table, parameters, sum(row.multiply_adds for row in table), parameters * 4, activation
    )
