"""bench/gpu.py, the network's half: LRN kernels, the step, what it waits for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tools.bench.contenders_step import CLASSES, INPUT_PX, LR, Ours, fixed_batch, tutorial
from tools.bench.gpu_record import NO_CUDA, Bench
from tools.bench.gpu_step import flop_of_step
from trainer.loader.loader import Batch
from trainer.network.alexnet import NETWORKS
from trainer.network.lrn import LocalResponseNorm
from trainer.network.space_to_depth import space_to_depth

TUTORIAL = "tutorials' network, eager float32"
TORCHVISION = "torchvision's AlexNet, autocast, channels-last"
GEMM_SIDE = 8192
# (channels, side) behind the first and the second convolution.
LRN_PLACES = ((96, 55), (256, 27))
LRN_DTYPES = (torch.float32, torch.bfloat16)


def lrn(bench: Bench) -> None:
    """One pass against sums over a band and the library's layer: exactness, then speed."""
    torch.manual_seed(0)
    for dtype, last in itertools.product((*LRN_DTYPES, torch.float16), (True, False)):
        _lrn_exactness(bench, dtype, last)
    if not bench.cuda:
        bench.skip("lrn: speed", NO_CUDA)
        return
    for (channels, side), dtype in itertools.product(LRN_PLACES, LRN_DTYPES):
        _lrn_speed(bench, channels, side, dtype)


def _lrn_exactness(bench: Bench, dtype: torch.dtype, last: bool) -> None:
    shape = (2, 96, 13, 13)
    x = (30 * torch.randn(shape, device=bench.device)).to(dtype)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    gradient = torch.randn(shape, device=bench.device).to(dtype)
    layer = LocalResponseNorm(96).to(bench.device)
    made = _both_ways(layer, x, gradient)
    # float64 has no kernel of its own: the general path.
    exact = _both_ways(layer, x.double(), gradient.double())
    off = max(
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip(made, exact, strict=True)
    )
    # Float32 arithmetic, then rounded to what the dtype holds.
    allowed = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    name = f"LRN on {bench.device.type}, {_name(dtype)}, channels {'last' if last else 'first'}"
    bench.difference(name, off, allowed, "of the largest", x.numel())


def _both_ways(layer: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.autograd.backward(y, gradient)
    assert x.grad is not None
    return [y.detach(), x.grad]


def _lrn_speed(bench: Bench, channels: int, side: int, dtype: torch.dtype) -> None:
    batch = bench.batch
    x = torch.randn(batch, channels, side, side, device=bench.device).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    band = LocalResponseNorm(channels).to(bench.device)
    band.one_pass = False
    layers = {
        "ours": LocalResponseNorm(channels).to(bench.device),
        "sums over a band": band,
        "PyTorch's layer": torch.nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
    }

    def run(layer: Callable[[Tensor], Tensor]) -> Callable[[], int]:
        def lap() -> int:
            for _ in range(bench.steps):
                _both_ways(layer, x, gradient)
            return bench.steps * batch

        return lap

    rates = bench.laps({name: run(layer) for name, layer in layers.items()})
    what = f"LRN {channels}x{side}x{side} {_name(dtype)}, both ways"
    for rival in list(layers)[1:]:
        bench.compare(what, rival, rates["ours"], rates[rival], batch)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def trainer(bench: Bench, network: str = "paper", *, graph: bool = True) -> Ours:
    """The trainer's step on the device, as ``trainer run`` has it."""
    return Ours(bench.threads, "auto", bench.small, bench.device.type, network, graph=graph)


def batch_on(bench: Bench, side: int = INPUT_PX) -> Batch:
    """Random images and labels on the device, channels last."""
    images, labels = fixed_batch(bench.batch, side)
    images = images.to(bench.device, memory_format=torch.channels_last)
    return Batch(images, labels.to(bench.device), torch.arange(bench.batch))


def unfed(bench: Bench, made: Ours, network: str = "paper") -> Callable[[], int]:
    """A lap of the trainer's steps, all on one batch as the loader hands it out."""
    spec = NETWORKS[network]
    batch = batch_on(bench, spec.input_size)
    if bench.cuda:
        images = space_to_depth(batch.images, spec.stem_padding).to(made.precision.dtype)
        batch = Batch(images, batch.labels, batch.indices)
    return lambda: int(made.train([batch] * bench.steps)["count"])


def guarded(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; while they last, whatever waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield from batches
    finally:
        torch.cuda.set_sync_debug_mode("default")


def sync_free(bench: Bench) -> None:
    """Steps under torch's sync debug mode ``error``; the first ones, which tune, outside."""
    made = trainer(bench)
    batch = batch_on(bench)
    made.train([batch] * 3)
    result = made.train(guarded([batch] * bench.steps))
    if result["count"] != bench.steps * bench.batch:
        bench.fail("sync", f"{result['count']} images in {bench.steps} steps")
    bench.record.details["steps without waiting for the device"] = bench.steps


def _tutorial(bench: Bench) -> Callable[[], int]:
    contender = tutorial(bench.batch, bench.threads, bench.small, bench.device.type)
    return lambda: sum(int(contender.lap()["count"]) for _ in range(bench.steps))


def _torchvision(bench: Bench) -> Callable[[], int]:
    """torchvision's network as its users speed it up: autocast and channels last."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    model = alexnet(num_classes=CLASSES)
    model.to(bench.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    batch = batch_on(bench, 224)

    def lap() -> int:
        for _ in range(bench.steps):
            optimizer.zero_grad()
            with torch.autocast(bench.device.type, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
            torch.autograd.backward(loss)
            optimizer.step()
        return bench.steps * bench.batch

    return lap


def step(bench: Bench) -> None:
    """Ours against both rivals; its share of the matrix peak."""
    ours = "the trainer's step"
    runs = {
        ours: unfed(bench, trainer(bench)),
        "torchvision's network": unfed(bench, trainer(bench, "torchvision"), "torchvision"),
        TUTORIAL: _tutorial(bench),
        TORCHVISION: _torchvision(bench),
    }
    rates = bench.laps(runs)
    n = bench.batch
    bench.compare("step, paper's network", TUTORIAL, rates[ours], rates[TUTORIAL], n, 5.5)
    same = rates["torchvision's network"]
    bench.compare("step, torchvision's network", TORCHVISION, same, rates[TORCHVISION], n, 1.8)
    _share_of_peak(bench, rates[ours])


def _share_of_peak(bench: Bench, rates: list[float]) -> None:
    """The step's arithmetic per second beside a large product of bfloat16 matrices."""
    side = 256 if bench.small else GEMM_SIDE
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> int:
        for _ in range(bench.steps):
            a @ b
        return bench.steps * 2 * side**3

    peak = bench.laps({"peak": products})["peak"]
    per_image = flop_of_step("paper")
    ours = [rate * per_image / 1e12 for rate in rates]
    theirs = [rate / 1e12 for rate in peak]
    what = f"bfloat16 product of {side} x {side} matrices"
    bench.compare("step, share of the matrix peak", what, ours, theirs, bench.batch,
                  unit="TFLOP/s")  # fmt: skip
    bench.record.details["flop per image"] = per_image
