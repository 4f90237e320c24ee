"""The training step on a CUDA device: right, its kernels one by one, whole, and where time goes.

    python tools/bench/gpu_step.py [--part check|blocks|steps|profile] [--out FOLDER] [--smoke]

Without --part every part runs in a process of its own, the most valuable first, each within its
time limit. Every line goes to stdout and to FOLDER/gpu_step.txt; the best settings of the blocks
that ``blocks`` found go to FOLDER/tuning.json, which the parts after it use. Exit status 1: a
result was wrong, or a part failed. Needs no network and nothing but torch and triton;
torchvision's own network is used where it is installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
BEGUN = time.perf_counter()

LIMITS_S = {"check": 180, "blocks": 180, "steps": 150, "profile": 60}
# (channels, side, alpha) of what is pooled in the paper's network, and of its two ReLUs.
POOLED = {"layer 1": (96, 55, 1e-4), "layer 2": (256, 27, 1e-4), "layer 5": (256, 13, 0.0)}
RELUS = {"layer 3": (384, 13), "layer 4": (384, 13)}
GRID: dict[str, list[tuple[int, int, int]]] = {  # threads, rows, registers
    "lrn forward": [(128, 9, 0), (128, 5, 0), (128, 14, 0), (64, 9, 0), (256, 9, 0),
                    (128, 9, 80), (128, 3, 0), (128, 27, 0)],
    "lrn backward": [(128, 14, 0), (128, 14, 128), (128, 14, 168), (128, 7, 128), (128, 7, 168),
                     (64, 7, 128), (256, 7, 128), (128, 4, 128), (128, 7, 96), (64, 14, 168)],
    "pool forward": [(128, 9, 0), (128, 3, 0), (64, 3, 0)],
    "pool backward": [(128, 14, 0), (128, 7, 0), (128, 2, 0), (64, 2, 64)],
    "relu forward": [(128, 16, 0), (128, 8, 0), (128, 4, 0), (256, 8, 0)],
    "relu backward": [(128, 16, 0), (128, 8, 0), (128, 32, 0), (256, 16, 0)],
}  # fmt: skip


class Part:
    """Where lines go, how large things are, and how many results were wrong."""

    def __init__(self, out: Path, small: bool) -> None:
        import torch

        self.out, self.small, self.wrong = out, small, 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = True
        tuning = out / "tuning.json"
        if tuning.exists():
            from trainer.network.blocks_triton import TUNING

            TUNING.update(json.loads(tuning.read_text()))

    def say(self, line: str) -> None:
        """A line to both places, at once."""
        print(line, flush=True)
        with (self.out / "gpu_step.txt").open("a") as record:
            record.write(line + "\n")

    def verdict(self, right: bool) -> str:
        """The word for a result; a wrong one is counted, and the part fails."""
        self.wrong += not right
        return "right" if right else "WRONG"

    def ms(self, run: Callable[[], Any], calls: int = 10, warm_up: int = 3) -> float:
        """Milliseconds of a call: the median of three rounds, until the device has done it."""
        for _ in range(warm_up):
            run()
        found = []
        for _ in range(3):
            self.settle()
            begun = time.perf_counter()
            for _ in range(calls):
                run()
            self.settle()
            found.append((time.perf_counter() - begun) * 1e3 / calls)
        return statistics.median(found)

    def kernel_ms(self, run: Callable[[], Any]) -> float:
        """Milliseconds of the kernels of a call, captured as a graph: without the host's time."""
        if self.device.type != "cuda":
            return self.ms(run)
        from triton.testing import do_bench_cudagraph

        took: float = do_bench_cudagraph(run, rep=20, return_mode="median")
        return took

    def settle(self) -> None:
        """Waits for the device."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


def sums(part: Part, batch: int, channels: int, side: int, dtype: Any) -> tuple[Any, Any]:
    """Sums of a convolution, channels last, and biases."""
    import torch

    batch, side = (1, 7) if part.small else (batch, side)
    torch.manual_seed(0)
    z = 10 * torch.randn(batch, channels, side, side, device=part.device)
    z = z.to(dtype).contiguous(memory_format=torch.channels_last)
    return z, torch.randn(channels, device=part.device).to(dtype)


def check(part: Part) -> None:
    """Blocks beside float64; networks with and without blocks; the graph beside no graph."""
    import torch

    from trainer.network import blocks, blocks_triton

    # Also for the blocks of a smoke run, whose tensors are on the CPU.
    before, blocks._kernels = blocks._kernels, lambda z: blocks_triton  # noqa: ARG005 - its name
    for name, dtype in itertools.product((*POOLED, *RELUS), (torch.float32, torch.bfloat16)):
        channels, side, *alpha = (POOLED | RELUS)[name]
        _check_block(part, name, channels, side, alpha[0] if alpha else None, dtype)
    blocks._kernels = before
    _check_optimizers(part)
    _check_graph(part)
    _check_training(part)


def _check_block(part: Part, name: str, channels: int, side: int, alpha: Any, dtype: Any) -> None:
    import torch
    from torch.nn import functional

    from trainer.network.blocks import Block

    z, bias = sums(part, 8, channels, side, dtype)
    block = Block(alpha is not None, 100 * (alpha or 0.0), 2.0)

    def plain(x: Any, b: Any) -> Any:
        x = functional.relu(x + b[:, None, None])
        if block.alpha:
            x = functional.local_response_norm(x, 5, 5 * block.alpha, 0.75, 2.0)
        return functional.max_pool2d(x, 3, 2) if block.pools else x

    results = []
    ways: list[tuple[Any, Any]] = [(block, dtype), (plain, torch.float64)]
    for run, wide in ways:
        x, b = (tensor.detach().to(wide).requires_grad_() for tensor in (z, bias))
        y = run(x * 1, b)
        generator = torch.Generator(part.device).manual_seed(1)
        gradient = torch.randn(y.shape, generator=generator, device=part.device).to(dtype)
        torch.autograd.backward(y, gradient.to(wide))
        assert x.grad is not None
        assert b.grad is not None
        results.append([y.detach().double(), x.grad.double(), b.grad.double()])
    off = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True)]
    # A device rounds to the nearest bfloat16; Triton's interpreter cuts off.
    half = 2**-8 if part.device.type == "cuda" else 2**-7
    verdict = part.verdict(max(off) <= (half if dtype == torch.bfloat16 else 2e-6))
    part.say(f"check {name} {dtype}: {verdict}; value, gradient, bias off by "
             f"{off[0]:.1e} {off[1]:.1e} {off[2]:.1e} of the largest")  # fmt: skip


def _check_optimizers(part: Part) -> None:
    import torch
    from torch import nn

    from trainer.training.optim import make_optimizer

    for kind in ("sgd", "adamw", "adam"):
        torch.manual_seed(0)
        mine = nn.Linear(333, 77, device=part.device)
        theirs = nn.Linear(333, 77, device=part.device)
        theirs.load_state_dict(mine.state_dict())
        ours = make_optimizer(mine, kind, momentum=0.9, weight_decay=0.1, decay_biases=True)
        kinds: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
        more = {"momentum": 0.9} if kind == "sgd" else {}
        library = kinds[kind](theirs.parameters(), lr=0.01, weight_decay=0.1, **more)
        for _ in range(5):
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
            ours.prepare(0.01)
            ours.step()
            library.step()
        off = max(float((a - b).detach().abs().max())
                  for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))  # fmt: skip
        part.say(f"check {kind}: {part.verdict(off < 1e-6)}; off by {off:.1e}")


def _losses(part: Part, steps: int, *, graph: bool, fused: bool, seed: int = 0) -> list[float]:
    """Losses of so many steps on eight batches of random images."""
    import torch

    from trainer.network import blocks

    before, blocks.TRITON = blocks.TRITON, fused
    try:
        step, batches = _small_step(part, graph)
        found = []
        for number in range(steps):
            torch.manual_seed(seed + number)
            step.prepare(0.01, number)
            found.append(step(*batches[number % 8]).clone())
        return [float(each[0]) / len(batches[0][1]) for each in found]
    finally:
        blocks.TRITON = before


def _small_step(part: Part, graph: bool) -> tuple[Any, list[Any]]:
    import torch

    from tools.bench.contenders_step import Ours

    made = Ours(1, "auto", True, part.device.type, "paper", graph=graph)
    made.model.train()
    generator = torch.Generator(part.device).manual_seed(0)
    batch = 2 if part.small else 64
    images = 60 * torch.randn(8, batch, 3, 227, 227, generator=generator, device=part.device)
    labels = torch.randint(0, 10, (8, batch), generator=generator, device=part.device)
    last = torch.channels_last
    pairs = zip(images, labels, strict=True)
    return made.step, [(x.to(memory_format=last), t) for x, t in pairs]


def _check_graph(part: Part) -> None:
    eager, captured = (_losses(part, 12, graph=graph, fused=True) for graph in (False, True))
    other = _losses(part, 12, graph=True, fused=True, seed=7)
    off = max(abs(a - b) for a, b in zip(eager, captured, strict=True))
    seeds = abs(captured[-1] - other[-1])
    verdict = part.verdict(off < 5e-3 and seeds > 0)
    part.say(f"check graph: {verdict}; 12 losses beside eager ones off by {off:.1e}, "
             f"another seed of dropout moves the last one by {seeds:.1e}")  # fmt: skip


def _check_training(part: Part) -> None:
    count = 8 if part.small else 200
    fused, plain = (_losses(part, count, graph=fused, fused=fused) for fused in (True, False))
    at = [i for i in (0, 1, 9, 49, 99, 199) if i < count]
    part.say("check 200 steps, blocks: " + " ".join(f"{fused[i]:.4f}" for i in at))
    part.say("check 200 steps, plain:  " + " ".join(f"{plain[i]:.4f}" for i in at))
    last = [statistics.mean(losses[-16:]) for losses in (fused, plain)]
    verdict = part.verdict(abs(last[0] - last[1]) < 0.15)
    part.say(f"check 200 steps: {verdict}; last 16 losses "
             f"on average {last[0]:.4f} and {last[1]:.4f}")  # fmt: skip


def tuned(part: Part, name: str, runs: dict[str, tuple[Callable[[], Any], float]]) -> None:
    """Times a kernel over its grid; the best in sum stays in TUNING. ``runs``: per layer what to
    run, and the bytes that it has to move."""
    from trainer.network.blocks_triton import TUNING

    best, kept = float("inf"), dict(TUNING[name])
    for threads, rows, registers in GRID[name][: 1 if part.small else None]:
        TUNING[name] = {"threads": threads, "rows": rows, "registers": registers}
        try:
            times = {layer: part.kernel_ms(run) for layer, (run, _) in runs.items()}
        except Exception as error:  # noqa: BLE001 - a setting that cannot be is one row
            told = f"{type(error).__name__} {error}"[:200]
            part.say(f"blocks {name} {threads, rows, registers}: {told}")
            continue
        told = ", ".join(
            f"{layer} {took:.3f} ms {runs[layer][1] / took / 1e9:.2f} TB/s"
            for layer, took in times.items()
        )
        part.say(f"blocks {name} threads {threads} rows {rows} registers {registers}: {told}")
        if sum(times.values()) < best:
            best, kept = sum(times.values()), dict(TUNING[name])
    TUNING[name] = kept
    part.wrong += best == float("inf")
    part.say(f"blocks {name} best: {kept}, {best:.3f} ms")
    (part.out / "tuning.json").write_text(json.dumps(TUNING))


def blocks(part: Part) -> None:
    """Each kernel over its grid, batch 256 in bfloat16, the costliest first."""
    import torch

    from trainer.network import blocks_triton as kernels

    batch = 2 if part.small else 256
    forward: dict[str, Any] = {"lrn": {}, "pool": {}}
    backward: dict[str, Any] = {"lrn": {}, "pool": {}}
    for layer, (channels, side, alpha) in POOLED.items():
        z, bias = sums(part, batch, channels, side, torch.bfloat16)
        y, cells = kernels.pool_forward(z, bias, alpha, 2.0, True)
        g, kind = torch.randn_like(y), "lrn" if alpha else "pool"
        wanted = None if kind == "pool" else z
        read = z.nbytes + y.nbytes + cells.nbytes
        forward[kind][layer] = (
            lambda z=z, b=bias, a=alpha: kernels.pool_forward(z, b, a, 2.0, True),
            read,
        )
        backward[kind][layer] = (
            lambda z=wanted, b=bias, g=g, c=cells, s=tuple(z.shape[2:]), a=alpha: (
                kernels.pool_backward(z, b, g, c, s, a, 2.0, True)
            ),
            read + (0 if wanted is None else z.nbytes),
        )
    tuned(part, "lrn backward", backward["lrn"])
    tuned(part, "lrn forward", forward["lrn"])
    tuned(part, "pool backward", backward["pool"])
    tuned(part, "pool forward", forward["pool"])
    z, bias = sums(part, batch, 384, 13, torch.bfloat16)
    g = torch.randn_like(z)
    tuned(part, "relu forward", {"layer 3": (lambda: kernels.relu_forward_(z, bias), 2 * z.nbytes)})
    tuned(part, "relu backward", {"layer 3": (lambda: kernels.relu_backward(z, g), 3 * z.nbytes)})
    _other_kernels(part, batch)


def _other_kernels(part: Part, batch: int) -> None:
    """The first layer's convolution and the optimiser's pass over the largest weight."""
    import torch
    from torch.nn import functional

    from trainer.training import optim_triton

    half: dict[str, Any] = {"device": part.device, "dtype": torch.bfloat16}
    x = torch.randn(batch, 48, 57, 57, **half).contiguous(memory_format=torch.channels_last)
    w = torch.randn(96, 48, 3, 3, **half).contiguous(memory_format=torch.channels_last)
    part.say(f"blocks conv1 over squares: {part.ms(lambda: functional.conv2d(x, w)):.3f} ms")
    n = 9216 * (1 if part.small else 4096)
    master, moment = (torch.zeros(n, device=part.device) for _ in range(2))
    gradient, work = torch.zeros(n, **half), torch.zeros(n, **half)
    numbers = torch.zeros(6, device=part.device)
    for average in (None, torch.zeros(n, device=part.device)):
        arguments = (master, gradient, work, average, moment, None, numbers)

        def run(given: Any = arguments) -> None:
            move: Any = optim_triton.move
            move(*given, (1.0, 0.0, 0.9, 0.0, 1e-8), decoupled=False)

        took = part.ms(run)
        moved = n * (20 + (0 if average is None else 8))
        part.say(f"blocks SGD of fc6{'' if average is None else ', average'}: {took:.3f} ms "
                 f"{moved / took / 1e9:.2f} TB/s")  # fmt: skip


def steps(part: Part) -> None:
    """Images a second of the whole step, ours and the rivals'."""
    import torch

    rates: dict[str, float] = {}
    begun = time.perf_counter()
    for batch in (2,) if part.small else (256, 1024, 512):
        for graph in (True, False):
            run = _ours(part, "paper", batch, graph)
            if batch == 256 and graph:
                run()
                part.settle()
                now = time.perf_counter()
                part.say(f"steps first step {now - begun:.1f} s after imports, {now - BEGUN:.1f} s "
                         "after the start")  # fmt: skip
            took = part.ms(run, 20, 5)
            rate = rates[f"ours {batch} {graph}"] = batch / took * 1e3
            kind = "graph" if graph else "eager"
            part.say(f"steps paper, batch {batch}, {kind}: {took:.3f} ms, {rate:,.0f} images/s")
            del run
            torch.cuda.empty_cache()
    if part.small:
        return
    ours = rates["ours 256 True"]
    _rival(part, "tutorials' network, eager float32", _tutorial(part, 256), 256, ours)
    run = _ours(part, "torchvision", 256, True)
    same = 256 / part.ms(run, 20, 5) * 1e3
    part.say(f"steps torchvision's network by us, batch 256: {same:,.0f} images/s")
    _rival(part, "torchvision's AlexNet, autocast, channels-last", _torchvision(part, 256), 256,
           same)  # fmt: skip
    a, b = (torch.randn(8192, 8192, device=part.device, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * 8192**3 / part.ms(lambda: a @ b) / 1e9
    flop = flop_of_step("paper")
    for name in ("ours 256 True", "ours 1024 True"):
        share = rates[name] * flop / 1e12 / peak
        part.say(f"steps share of the matrix peak ({peak:.0f} TFLOP/s), {name}: {share:.3f}")


def flop_of_step(network: str) -> float:
    """Floating point operations of a step, an image: thrice the forward pass, without the
    gradient of the images."""
    from trainer.network.alexnet import NETWORKS
    from trainer.network.summary import summarise

    table = summarise(NETWORKS[network])
    operations: float = 6.0 * table.multiply_adds - 2.0 * table.rows[0].multiply_adds
    return operations


def _ours(part: Part, network: str, batch: int, graph: bool) -> Callable[[], Any]:
    """The trainer's step on a batch in squares, as the loader hands it out."""
    import torch

    from tools.bench.contenders_step import CLASSES, LR, Ours
    from trainer.network.alexnet import NETWORKS
    from trainer.network.space_to_depth import squares
    from trainer.training.step import Sums

    made = Ours(1, "auto", part.small, part.device.type, network, graph=graph)
    made.step.learner.train()
    spec = NETWORKS[network]
    side = squares(spec.input_size, spec.stem_padding)
    images = 60 * torch.randn(batch, 48, side, side, device=part.device)
    images = images.bfloat16().contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,), device=part.device)
    counted = Sums(part.device)
    numbers: Iterator[int] = itertools.count()

    def run() -> None:
        number = next(numbers)
        torch.manual_seed(number)
        made.step.prepare(LR * (1 - number * 1e-6), number)
        counted.add(made.step(images, labels), batch)

    return run


def _rival(part: Part, name: str, run: Callable[[], Any] | None, batch: int, ours: float) -> None:
    if run is None:
        part.say(f"steps {name}: not installed")
        return
    rate = batch / part.ms(run, 10, 3) * 1e3
    part.say(f"steps {name}, batch {batch}: {rate:,.0f} images/s; ours {ours / rate:.2f} x")


def _tutorial(part: Part, batch: int) -> Callable[[], Any]:
    import torch
    from torch import nn

    from tools.bench.contenders_step import LR, fixed_batch, tutorial_network

    model = tutorial_network(part.small).to(part.device)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    images, labels = (tensor.to(part.device) for tensor in fixed_batch(batch))

    def run() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(images), labels))
        optimizer.step()

    return run


def _torchvision(part: Part, batch: int) -> Callable[[], Any] | None:
    try:
        from torchvision.models import alexnet
    except ImportError:
        return None
    import torch

    from tools.bench.contenders_step import LR, fixed_batch

    model = alexnet(num_classes=1000).to(part.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    images, labels = (tensor.to(part.device) for tensor in fixed_batch(batch, 224))
    images = images.to(memory_format=torch.channels_last)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()

    return run


def profile(part: Part) -> None:
    """Kernels of at least 2 % of a step, of batches of 256 and 1024."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    for batch in (2,) if part.small else (256, 1024):
        run = _ours(part, "paper", batch, True)
        for _ in range(6):
            run()
        part.settle()
        cuda = part.device.type == "cuda"
        kind = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
        with profiled(activities=[kind]) as found:
            for _ in range(3):
                run()
            part.settle()
        rows = [(each.self_device_time_total / 3e3, each.count / 3, each.key)
                for each in found.key_averages() if each.self_device_time_total]  # fmt: skip
        total = sum(row[0] for row in rows)
        part.say(f"profile batch {batch}: {total:.3f} ms of kernels a step, "
                 f"{sum(row[1] for row in rows):.0f} kernels")  # fmt: skip
        for took, calls, name in sorted(rows, reverse=True):
            if took >= 0.01 * total:
                share = 100 * took / total
                part.say(f"profile {took:8.3f} ms {share:5.1f} % x{calls:5.1f} {name[:150]}")
        del run


PARTS: dict[str, Callable[[Part], None]] = {
    "check": check, "blocks": blocks, "steps": steps, "profile": profile,
}  # fmt: skip


def main() -> int:
    """Runs one part, or each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("gpu_step"))
    parser.add_argument("--smoke", action="store_true", help="small sizes; no figure counts")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part:
        part = Part(given.out, given.smoke)
        PARTS[given.part](part)
        return int(part.wrong > 0)
    failed = 0
    for name in PARTS:
        command = [sys.executable, __file__, "--part", name, "--out", str(given.out)]
        try:
            limit = LIMITS_S[name]
            failed |= subprocess.run(
                command + ["--smoke"] * given.smoke, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            print(f"{name}: longer than {LIMITS_S[name]} s", flush=True)
            failed = 1
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
