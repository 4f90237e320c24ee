"""Triton's kernels on a CPU, in a process that interprets them or compiles them for a GPU.

    python interpreted.py values    the kernels' results beside float64, as one JSON object
    python interpreted.py machine   the kernels as machine code of an H100 or H200

Run by test_lrn_triton.py: Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from typing import Any

import torch
from torch import Tensor

from trainer.network import lrn_triton

LAYOUTS = {"last": torch.channels_last, "first": torch.contiguous_format}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Channels and places that do not fill a tile; even windows and other powers too.
WINDOWS = ((5, 0.75), (4, 0.5), (1, 0.75), (5, 1.0))
SHAPE, ALPHA, K = (2, 37, 3, 5), 1e-3, 2.0


def definition(x: Tensor, size: int, beta: float) -> Tensor:
    """float64, with the channels gathered one by one."""
    squares = torch.nn.functional.pad(x * x, (0, 0, 0, 0, size // 2, (size - 1) // 2))
    total = sum(squares[:, w : w + x.shape[1]] for w in range(size))
    return x * (K + ALPHA * total) ** -beta


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


def one_case(size: int, beta: float, layout: str, dtype: str) -> dict[str, Any]:
    """How far both directions are off, and whether they keep dtype and layout."""
    x = (30 * torch.randn(SHAPE)).to(DTYPES[dtype]).to(memory_format=LAYOUTS[layout])
    gradient = torch.randn(SHAPE).to(DTYPES[dtype])  # channels first, always
    exact = x.double().requires_grad_()
    wanted = definition(exact, size, beta)
    torch.autograd.backward(wanted, gradient.double())
    y = lrn_triton.forward(x, size, ALPHA, beta, K)
    dx = lrn_triton.backward(x, gradient, size, ALPHA, beta, K)
    assert exact.grad is not None
    return {
        "case": f"size {size}, beta {beta}, channels {layout}, {dtype}",
        "half": dtype != "float32",
        "forward": apart(y, wanted.detach()),
        "backward": apart(dx, exact.grad),
        "alike": all((t.dtype, t.stride()) == (x.dtype, x.stride()) for t in (y, dx)),
    }


def damaged() -> list[bool]:
    """Which of 12 channels are not numbers when the sixth was none."""
    x = torch.ones(1, 12, 1, 1)
    x[0, 5] = float("nan")
    return torch.isnan(lrn_triton.forward(x, 5, ALPHA, 0.75, K)).flatten().tolist()


def values() -> dict[str, Any]:
    """Every case; what NaN spreads to."""
    torch.manual_seed(0)
    cases = [
        one_case(size, beta, layout, dtype)
        for (size, beta), layout, dtype in itertools.product(WINDOWS[:2], LAYOUTS, DTYPES)
    ]
    cases += [one_case(size, beta, "last", "float32") for size, beta in WINDOWS[2:]]
    return {"cases": cases, "damaged": damaged()}


def assembled(kernel: Any, pointers: str, dtype: str) -> dict[str, Any]:
    """A kernel for channels-last batches -> its loads and stores, and its size in bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows, columns = lrn_triton._TILE_CHANNELS_LAST
    fixed = {"SIZE": 5, "ROOTS": True, "ROWS": rows, "CHANNELS": columns, "per_channel": 1}
    names = kernel.arg_names
    kinds = dict.fromkeys(pointers.split(), f"*{dtype}")
    kinds |= dict.fromkeys(("alpha", "beta", "k"), "fp32") | dict.fromkeys(fixed, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in names}
    even = [*pointers.split(), "channels", "per_image", "per_place"]  # multiples of 16
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    made = triton.compile(source, GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
    found = re.findall(r"(ld|st)\.global", made.asm["ptx"])
    return {
        "loads": found.count("ld"),
        "stores": found.count("st"),
        "bytes": len(made.asm["cubin"]),
    }


def machine() -> dict[str, Any]:
    """Both kernels, for bfloat16 batches."""
    return {
        "forward": assembled(lrn_triton._forward, "x y", "bf16"),
        "backward": assembled(lrn_triton._backward, "x g dx", "bf16"),
        "per_thread": lrn_triton._TILE_CHANNELS_LAST[0] * lrn_triton._TILE_CHANNELS_LAST[1] // 128,
    }


if __name__ == "__main__":
    print(json.dumps({"values": values, "machine": machine}[sys.argv[1]]()))  # noqa: T201
