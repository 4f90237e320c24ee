"""The family as functions of PyTorch alone, to compare the product's network with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from trainer.network.alexnet import NETWORKS, AlexNet, NetworkSpec, build

FAITHFUL = [name for name, spec in NETWORKS.items() if spec.norm != "batch"]


class Margins:
    """How far the closest decision of ReLUs and poolings is from falling otherwise, as a part of
    the largest value at that place: below float32's error two right computations may differ."""

    def __init__(self) -> None:
        self.least = 1.0

    def relu(self, x: Tensor) -> None:
        self._note(x.abs().min() / x.abs().max())

    def pool(self, x: Tensor) -> None:
        windows = functional.unfold(x.flatten(0, 1)[:, None], 3, stride=2)
        first, second = windows.topk(2, dim=1).values.unbind(1)
        apart = (first - second)[first > 0]
        if apart.numel():
            self._note(apart.min() / x.abs().max())

    def _note(self, margin: Tensor) -> None:
        self.least = min(self.least, float(margin))


def spatial_norm(x: Tensor, k: float) -> Tensor:
    """The 2012 code's second normalisation: each map over its own 5 x 5 neighbours, 0.001."""
    total = functional.avg_pool2d(x * x, 5, 1, 2, divisor_override=1)
    return x * (k + 0.001 / 25 * total) ** -0.75


def plain_logits(
    spec: NetworkSpec, weights: dict[str, Tensor], x: Tensor, margins: Margins | None = None
) -> Tensor:
    """The network in evaluation: levels times ``input_scale``, convolutions, then the words of
    ``orders``, LRN by the library (its alpha is divided by the size), then dense layers."""
    margins = margins or Margins()
    x = x * spec.input_scale
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    for index, name in enumerate(names[:5]):
        stride, padding = ((4, spec.stem_padding), (1, 2), (1, 1), (1, 1), (1, 1))[index]
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        x = functional.conv2d(x, weight, bias, stride, padding, groups=spec.groups[index])
        for word in (*spec.orders, "relu", "relu", "relu pool")[index].split():
            if word == "relu":
                margins.relu(x.detach())
                x = x.clamp(min=0)
            elif word == "pool":
                margins.pool(x.detach())
                x = functional.max_pool2d(x, 3, 2)
            elif spec.norm == "lrn" and word == "spatial":
                x = spatial_norm(x, spec.lrn_k)
            elif spec.norm == "lrn":
                alpha = spec.lrn_alpha * spec.lrn_size
                x = functional.local_response_norm(x, spec.lrn_size, alpha, 0.75, spec.lrn_k)
    x = x.flatten(1)
    for name in names[5:]:
        x = functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        if name != names[-1]:
            margins.relu(x.detach())
            x = x.clamp(min=0)
    return x


def with_last_layer(spec: NetworkSpec, seed: int) -> AlexNet:
    """``spec`` as a network in evaluation, He-initialised, the last layer not of zeros."""
    model = build(replace(spec, init="he"), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    last = [*model.parameters()][-2]
    with torch.no_grad():
        last.copy_(0.1 * torch.randn(last.shape, generator=generator))
    return model


def exact(
    spec: NetworkSpec, model: AlexNet, images: Tensor, weight: Tensor, margins: Margins
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of their sum, weighted, from ``model``'s weights in float64."""
    copies = {
        name: tensor.detach().double().contiguous().requires_grad_()
        for name, tensor in model.named_parameters()
    }
    logits = plain_logits(spec, copies, images.double(), margins)
    torch.autograd.backward((logits * weight.double()).sum())
    gradients = {name: tensor.grad for name, tensor in copies.items()}
    return logits.detach(), {name: g for name, g in gradients.items() if g is not None}
