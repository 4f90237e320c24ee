"""The AlexNet family from one description: NetworkSpec -> nn.Module, and its layer table.

Inputs are (B, C, S, S) in 0-255 levels minus the mean. A state dict has torchvision's
names (``features.N``, ``classifier.N``), so torchvision's own weights fit `torchvision`.
Parameter counts are those of Krizhevsky, Sutskever, Hinton 2012 and of the variants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imagenet_prep.core.errors import UsageError
from trainer.network import blocks, weight_gradient
from trainer.network.lrn import LocalResponseNorm, SpatialResponseNorm
from trainer.network.space_to_depth import SIDE, space_to_depth, squares, stem_weight


class NetworkError(UsageError):
    """A description whose shapes do not work out."""


@dataclass(frozen=True)
class NetworkSpec:
    """One member of the family.

    ``widths`` are the filters of the five convolutions, ``groups`` their groups;
    ``stem_padding`` pads the 11×11 stride-4 convolution; ``orders`` is what follows the
    first and the second convolution, in order: ``relu``, ``norm``, ``spatial`` (a second
    normalisation over 5×5 neighbours in the same map), ``pool``. ``norm`` is ``lrn`` (where
    ``orders`` has it), ``batch`` (after every layer but the last, before its ReLU or
    ``norm_after`` it) or ``none``; LRN constants follow the paper (α multiplies the plain sum).
    Dropout comes before both hidden dense layers, as torchvision has it, or ``dropout_after``
    them, as the paper and its author's code do. ``init`` is
    ``normal`` (``weight_std`` and ``biases`` of the five convolutions and three dense
    layers), ``torch`` (PyTorch's own, as torchvision trained) or ``he`` (He-normal, zero
    biases, a last layer of zeros); ``input_scale`` multiplies the input, so that a
    He-initialised network sees about unit variance. With ``channels`` 1 colour images are
    averaged over their channels first, which leaves grey ones as they are. ``test_size`` is the
    side of the images in an evaluation (0: ``input_size``): random area crops show things
    larger than the centre view does. Feature maps of another side than ``pooled``, as smaller
    images give them, are averaged to it.
    """

    classes: int = 1000
    channels: int = 3
    input_size: int = 227
    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    groups: tuple[int, int, int, int, int] = (1, 1, 1, 1, 1)
    hidden: tuple[int, int] = (4096, 4096)
    stem_padding: int = 0
    pooled: int = 6
    norm: str = "lrn"
    orders: tuple[str, str] = ("relu norm pool", "relu norm pool")
    lrn_size: int = 5
    lrn_alpha: float = 1e-4
    lrn_beta: float = 0.75
    lrn_k: float = 2.0
    dropout: float = 0.5
    dropout_after: bool = False
    init: str = "normal"
    weight_std: tuple[float, ...] = (0.01,) * 8
    biases: tuple[float, ...] = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    input_scale: float = 1.0
    norm_after: bool = False
    test_size: int = 0

    @property
    def test_side(self) -> int:
        """The side of the images in an evaluation."""
        return self.test_size or self.input_size


_SMALL = NetworkSpec(input_size=131, pooled=3, norm="batch", init="he", input_scale=1 / 64)
_COMPACT = replace(_SMALL, widths=(64, 192, 384, 256, 256), hidden=(1024, 1024))
_BETTER: dict[str, Any] = {"norm_after": True, "dropout": 0.2, "test_size": 147}

NETWORKS: dict[str, NetworkSpec] = {
    # One tower, the network of most reimplementations: 62,378,344 parameters.
    "paper": NetworkSpec(dropout_after=True),
    # The paper's two towers as grouped convolutions: 60,965,224.
    "paper-two-tower": NetworkSpec(groups=(1, 2, 1, 2, 2), dropout_after=True),
    # What the 2012 code (layers-145) runs: LRN on the first convolution's sums, ReLU last;
    # α divided by the size; a spatial normalisation in layer 2; 0.03 in conv3 to conv5.
    "original-2012": NetworkSpec(
        groups=(1, 2, 1, 2, 2),
        orders=("norm pool relu", "relu norm spatial pool"),
        dropout_after=True,
        lrn_alpha=1e-4 / 5,
        weight_std=(0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01),
    ),
    # BVLC's reference: k = 1, α divided by the size, biases 0.1, dense layers from 0.005.
    "caffe": NetworkSpec(
        groups=(1, 2, 1, 2, 2),
        lrn_alpha=1e-4 / 5,
        lrn_k=1.0,
        dropout_after=True,
        weight_std=(0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01),
        biases=(0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0),
    ),
    # Krizhevsky 2014 (arXiv 1404.5997), as his cuda-convnet2 describes it for one GPU: LRN
    # before the first ReLU.
    "one-weird-trick": NetworkSpec(
        widths=(64, 192, 384, 256, 256),
        orders=("norm pool relu", "relu norm pool"),
        lrn_alpha=1e-4 / 5,
        weight_std=(0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01),
        dropout_after=True,
    ),
    # "One weird trick" widths without LRN; loads torchvision's weights: 61,100,840.
    "torchvision": NetworkSpec(
        input_size=224, widths=(64, 192, 384, 256, 256), stem_padding=2, norm="none", init="torch"
    ),
    # Four tutorials' own. PyTorch's first weights and LRN's alpha 1e-3 divided by its size.
    "tutorial-tiny-imagenet": NetworkSpec(lrn_alpha=1e-3 / 5, init="torch"),
    # Dense biases that begin at zero.
    "tutorial-imagenet": NetworkSpec(
        dropout_after=True, biases=(0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    ),
    # Small grey images enlarged to 224: 6400 values before the dense layers; levels of 0-1.
    "tutorial-fashion-mnist": NetworkSpec(
        input_size=224,
        pooled=5,
        norm="none",
        init="torch",
        dropout_after=True,
        input_scale=1 / 255,
    ),
    # The paper's network without LRN.
    "tutorial-cats-dogs": NetworkSpec(norm="none", init="torch", dropout_after=True),
    # For thousands of images rather than millions: the paper's layers with batch
    # normalisation in LRN's place, on images of 131 px (a third of the arithmetic).
    "small": _SMALL,
    # `small` with torchvision's widths and dense layers of 1024: 57 % of the arithmetic, a
    # fifth of the weights.
    "compact": _COMPACT,
    # `compact` for images that were small from the start, of about 64 px.
    "thumbnail": replace(_COMPACT, input_size=67, pooled=1),
    # `small` and `compact` with batch normalisation after the ReLU, less dropout, and larger
    # images in an evaluation, since random area crops have shown things larger.
    "best": replace(_SMALL, **_BETTER),
    "best-compact": replace(_COMPACT, **_BETTER),
    # `best-compact` on larger images, which show more details: 2.4 times its arithmetic.
    "best-compact-195": replace(
        _COMPACT, **(_BETTER | {"input_size": 195, "pooled": 5, "test_size": 223})
    ),
    # For images of about 28 px, four to a filter's step: the arithmetic of `thumbnail` with
    # half the filters, at four times as many places: 1,167,850 with one channel, ten classes.
    # Less dropout: so few weights have nothing to spare.
    "miniature": replace(
        _COMPACT,
        input_size=115,
        pooled=2,
        widths=(32, 96, 160, 160, 128),
        hidden=(512, 512),
        dropout=0.25,
    ),
}


def network_spec(name: str, *, classes: int, channels: int = 3) -> NetworkSpec:
    """The named description for that many classes and input channels."""
    if name not in NETWORKS:
        raise NetworkError(
            "network.unknown",
            f"--network {name}: does not exist; choose from {', '.join(NETWORKS)}",
        )
    if classes < 1 or channels < 1:
        raise NetworkError(
            "network.shape", f"{classes} classes and {channels} channels; both must be at least 1"
        )
    return replace(NETWORKS[name], classes=classes, channels=channels)


def feature_sides(spec: NetworkSpec) -> list[tuple[str, int]]:
    """(layer, side of its output in pixels) through the feature layers.

    NetworkError with the layer and the arithmetic where a kernel does not fit.
    """
    sides: list[tuple[str, int]] = []
    side = spec.input_size
    for layer, kernel, stride, padding in (
        ("conv1", 11, 4, spec.stem_padding),
        ("pool1", 3, 2, 0),
        ("conv2", 5, 1, 2),
        ("pool2", 3, 2, 0),
        ("conv3", 3, 1, 1),
        ("conv4", 3, 1, 1),
        ("conv5", 3, 1, 1),
        ("pool5", 3, 2, 0),
    ):
        room = side + 2 * padding - kernel
        if room < 0:
            raise NetworkError(
                "network.too_small",
                f"{layer}: its {kernel}×{kernel} kernel does not fit its input of {side} + "
                f"2×{padding} px (input_size {spec.input_size}); use larger images",
            )
        side = room // stride + 1
        sides.append((layer, side))
    return sides


class _Scale(nn.Module):
    """x -> x · factor; without parameters."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class _Grey(nn.Module):
    """(B, C, S, S) -> (B, 1, S, S), the mean of the channels; without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True) if x.shape[1] > 1 else x


@dataclass(frozen=True)
class _Stage:
    """A convolution, the layers after it, up to number ``end``, and the block that they are."""

    end: int
    block: blocks.Block | None

    def __call__(self, layers: list[nn.Module], x: Tensor) -> Tensor:
        """The next stage's input; ``layers`` begin with the convolution."""
        convolution = layers[0]
        assert isinstance(convolution, nn.Conv2d)
        bias = convolution.bias
        if self.block is not None and blocks.takes(x, convolution.out_channels):
            assert bias is not None
            return self.block(_convolved(convolution, x, None), bias)
        x = _convolved(convolution, x, bias)
        for layer in layers[1:]:
            x = layer(x)
        return x


def _convolved(layer: nn.Conv2d, x: Tensor, bias: Tensor | None) -> Tensor:
    """The layer with another bias; the first one over squares of 4 x 4 pixels on CUDA, and where
    the images come as such."""
    images = x.shape[1] == layer.in_channels
    if layer.kernel_size == (11, 11) and (x.is_cuda or not images):
        if images:
            assert isinstance(layer.padding[0], int)
            x = space_to_depth(x, layer.padding[0])
        return functional.conv2d(x, stem_weight(layer.weight), bias)
    if weight_gradient.fits(x, layer):
        return weight_gradient.convolve(x, layer.weight, bias, int(layer.padding[0]))
    if bias is layer.bias:
        convolved: Tensor = layer(x)
        return convolved
    return functional.conv2d(
        x, layer.weight, bias, layer.stride, layer.padding, groups=layer.groups
    )


class AlexNet(nn.Module):
    """(B, 3, S, S) levels minus the mean -> (B, classes) logits.

    Also (B, 48, n, n), what ``space_to_depth`` makes of such images of three channels.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        sides = {feature_sides(replace(spec, input_size=side))[-1][1]
                 for side in (spec.input_size, spec.test_side)}  # fmt: skip
        self.spec = spec
        self.grey = _Grey() if spec.channels == 1 else nn.Identity()
        self.scale = _Scale(spec.input_scale) if spec.input_scale != 1.0 else nn.Identity()
        layers, self._stages = _stages(spec)
        self.features = nn.Sequential(*layers)
        same = sides == {spec.pooled}
        self.avgpool = nn.Identity() if same else nn.AdaptiveAvgPool2d(spec.pooled)
        self.classifier = nn.Sequential(*_classifier_layers(spec))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.scale(self.grey(x))
        if not (x.is_meta or torch.is_autocast_enabled(x.device.type)):
            x = x.to(next(self.features.parameters()).dtype)
        # Taken anew: exports put other layers in their places.
        layers, begin = list(self.features), 0
        for stage in self._stages:
            x = stage(layers[begin : stage.end], x)
            begin = stage.end
        x = self.avgpool(x)
        if x.shape[2] != self.spec.pooled:  # images of another side than the description's
            x = functional.adaptive_avg_pool2d(x, self.spec.pooled)
        # Channels first before flattening: the weights' order is torchvision's.
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def takes_squares(spec: NetworkSpec) -> bool:
    """Whether a network of ``spec`` on CUDA takes images as the loader's space_to_depth layout:
    three channels without padding, a side that squares of 4 x 4 pixels cover as the first
    convolution needs it, and a block behind that convolution."""
    whole = squares(spec.input_size, 0) == -(-spec.input_size // SIDE)
    fits = spec.channels == 3 and spec.stem_padding == 0 and whole
    return fits and blocks.TRITON and _stages(spec)[1][0].block is not None


def _stages(spec: NetworkSpec) -> tuple[list[nn.Module], list[_Stage]]:
    """The layers of ``features``, and how the forward pass takes them."""
    made: list[nn.Module] = []
    stages: list[_Stage] = []
    inputs = spec.channels
    kernels = ((11, 4, spec.stem_padding), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
    for index, (kernel, stride, padding) in enumerate(kernels):
        width, groups = spec.widths[index], spec.groups[index]
        made.append(nn.Conv2d(inputs, width, kernel, stride, padding, groups=groups))
        words = (*spec.orders, "relu", "relu", "relu pool")[index].split()
        block = None
        if spec.norm == "batch":
            words.insert(words.index("relu") + spec.norm_after, "batch")
        else:
            kept = [word for word in words if spec.norm == "lrn" or word in ("relu", "pool")]
            constants = (spec.lrn_size, spec.lrn_alpha, spec.lrn_beta, spec.lrn_k)
            block = blocks.block_of(" ".join(kept), *constants)
        made += [layer for word in words for layer in _following(word, width, spec)]
        stages.append(_Stage(len(made), block))
        inputs = width
    return made, stages


def _following(word: str, width: int, spec: NetworkSpec) -> list[nn.Module]:
    """What a word of ``spec.orders`` stands for after a convolution of ``width`` filters."""
    if word == "relu":
        return [nn.ReLU(inplace=True)]
    if word == "pool":
        return [nn.MaxPool2d(3, 2)]
    if word == "batch":
        return [nn.BatchNorm2d(width)]
    if word not in ("norm", "spatial"):
        raise NetworkError(
            "network.order", f"orders: {word!r} is not one of relu, norm, spatial and pool"
        )
    if spec.norm != "lrn":
        return []
    if word == "spatial":
        return [SpatialResponseNorm(width, alpha=0.001 / 25, k=spec.lrn_k)]
    return [LocalResponseNorm(width, spec.lrn_size, spec.lrn_alpha, spec.lrn_beta, spec.lrn_k)]


def _classifier_layers(spec: NetworkSpec) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = spec.widths[4] * spec.pooled**2
    for width in spec.hidden:
        before = nn.Identity() if spec.dropout_after else nn.Dropout(spec.dropout)
        layers += [before, nn.Linear(inputs, width)]
        relu = nn.ReLU(inplace=True)
        after = spec.dropout_after  # in one place with the ReLU: weights keep torchvision's names
        layers.append(nn.Sequential(relu, nn.Dropout(spec.dropout)) if after else relu)
        if spec.norm == "batch":
            layers.insert(len(layers) - (not spec.norm_after), nn.BatchNorm1d(width))
        inputs = width
    layers.append(nn.Linear(inputs, spec.classes))
    return layers


def build(spec: NetworkSpec, seed: int) -> AlexNet:
    """The network with weights that are a function of ``spec`` and ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AlexNet(spec)
        _initialise(model, spec)
    return model


def _initialise(model: AlexNet, spec: NetworkSpec) -> None:
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for index, layer in enumerate(layers):
        assert layer.bias is not None
        last = index == len(layers) - 1
        if spec.init == "torch":
            continue  # as its constructor left it
        if spec.init == "normal":
            nn.init.normal_(layer.weight, std=spec.weight_std[index])
            nn.init.constant_(layer.bias, spec.biases[index])
        elif spec.init == "he":
            nn.init.zeros_(layer.bias)
            if last:
                nn.init.zeros_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            raise NetworkError(
                "network.init", f"init {spec.init!r}: choose from normal, torch and he"
            )
