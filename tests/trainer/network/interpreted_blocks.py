"""The kernels of blocks on a CPU, in a process that interprets them or compiles them for a GPU.

    python interpreted_blocks.py values     results beside float64, as one JSON object
    python interpreted_blocks.py networks   networks made of blocks beside plain ones
    python interpreted_blocks.py machine    registers and memory on A100 and H100

Run by test_blocks.py: Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.kit.plain_network import FAITHFUL, Margins, exact, with_last_layer
from trainer.network import alexnet, blocks
from trainer.network import blocks_triton as kernels

# These are on the CPU, whose own kernels have tests of their own.
blocks._kernels = lambda z: kernels
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
K = 2.0
ORDERS = {
    "relu norm pool": blocks.Block(pools=True, alpha=1e-2, k=K),
    "norm pool relu": blocks.Block(pools=True, alpha=1e-2, k=K, first=False),
    "relu pool": blocks.Block(pools=True),
    "relu": blocks.Block(pools=False),
}
# Sides that are odd, even and the least; channels from one vector to the widest layer.
SHAPES = ((2, 8, 3, 3), (1, 24, 7, 6), (1, 96, 5, 9), (1, 256, 4, 5), (1, 384, 5, 5))


def definition(z: Tensor, bias: Tensor, words: str, alpha: float) -> Tensor:
    """The words in order, by PyTorch, neighbours gathered one by one."""
    x = z + bias[:, None, None]
    for word in words.split():
        if word == "relu":
            x = functional.relu(x)
        elif word == "norm":
            squares = functional.pad(x * x, (0, 0, 0, 0, 2, 2))
            total = sum(squares[:, w : w + x.shape[1]] for w in range(5))
            x = x * (K + alpha * total) ** -0.75
        else:
            x = functional.max_pool2d(x, 3, 2)
    return x


def both_ways(run: Any, z: Tensor, bias: Tensor, seed: int) -> list[Tensor]:
    """The result and both gradients of ``run(z, bias)``."""
    z, bias = z.detach().requires_grad_(), bias.detach().requires_grad_()
    y = run(z * 1, bias)  # a copy: the kernel of bias and ReLU works in place
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    torch.autograd.backward(y, gradient.to(y.dtype))
    assert z.grad is not None
    assert bias.grad is not None
    return [y.detach(), z.grad, bias.grad]


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def compared(name: str, words: str, z: Tensor, bias: Tensor) -> dict[str, Any]:
    """How far a block is off for these sums, and whether it keeps dtypes and layout."""
    found = both_ways(ORDERS[words], z, bias, 1)
    # The same rounded gradient on both sides.
    wanted = both_ways(lambda a, b: definition(a, b, words, 1e-2), z.double(), bias.double(), 1)
    last = torch.channels_last
    return {
        "case": f"{name}: {words}, {tuple(z.shape)}, {z.dtype}",
        "half": z.dtype != torch.float32,
        "apart": [apart(a, b) for a, b in zip(found, wanted, strict=True)],
        "alike": all(t.dtype == z.dtype for t in found)
        and all(t.is_contiguous(memory_format=last) for t in found[:2]),
    }


def sums(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sums of a convolution without ties, and biases."""
    z = (10 * torch.randn(shape)).to(dtype).to(memory_format=torch.channels_last)
    return z, torch.randn(shape[1]).to(dtype)


def values() -> dict[str, Any]:
    """Every order over shapes and dtypes; ties; zeros; what is no number."""
    torch.manual_seed(0)
    cases = []
    for words in ORDERS:
        for number, shape in enumerate(SHAPES):
            dtype = DTYPES["float32"] if number != 1 else DTYPES["bfloat16"]
            cases.append(compared("random", words, *sums(shape, dtype)))
        cases.append(compared("random", words, *sums((2, 16, 5, 5), torch.float16)))
        # Small whole numbers: most windows have their largest value several times.
        z = torch.randint(-1, 2, (1, 16, 7, 7)).float().to(memory_format=torch.channels_last)
        cases.append(compared("ties", words, z, torch.zeros(16)))
        cases.append(compared("zeros", words, 0 * z, torch.zeros(16)))
    nothing = ("nan", "inf", "-inf")
    odd = itertools.product(("relu norm pool", "relu pool", "relu"), map(float, nothing))
    return {"cases": cases, "damaged": [damaged(*each) for each in odd]}


def damaged(words: str, value: float) -> bool:
    """Whether a value that is none, or infinite, leads to what the definition has."""
    z = torch.ones(1, 24, 5, 5).to(memory_format=torch.channels_last)
    z[0, 11, 2, 3] = value
    bias = torch.zeros(24)
    wanted = definition(z.double(), bias.double(), words, 1e-2)
    found = ORDERS[words](z.clone(memory_format=torch.preserve_format), bias).double()
    return torch.allclose(found, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


def network(name: str) -> dict[str, Any]:
    """A small network of the family's orders from blocks, beside its float64 definition."""
    spec = replace(
        alexnet.NETWORKS[name], classes=5, input_size=67, pooled=1, widths=(16, 24, 16, 16, 8),
        hidden=(16, 16), channels=3,
    )  # fmt: skip
    weight = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    for seed in range(50):
        model, margins = with_last_layer(spec, seed), Margins()
        images = 60 * torch.randn(1, 3, 67, 67, generator=torch.Generator().manual_seed(seed))
        wanted, gradients = exact(spec, model, images, weight, margins)
        if margins.least > 2e-5:
            break
    model.to(memory_format=torch.channels_last)
    logits = model(images)
    torch.autograd.backward((logits * weight).sum())
    off = {key: apart(p.grad, gradients[key]) for key, p in model.named_parameters()
           if p.grad is not None}  # fmt: skip
    return {
        "network": name,
        "margin": margins.least,
        "blocks": sum(stage.block is not None for stage in model._stages),
        "logits": apart(logits.detach(), wanted),
        "gradients": max(off.values()),
        "parameters": [len(off), len(list(model.parameters()))],
    }


def networks() -> list[dict[str, Any]]:
    """Every network without batch normalisation; one of those that differ in constants only."""
    blocks.takes = lambda x, filters: filters % 8 == 0  # it asks for CUDA otherwise
    kinds: dict[Any, str] = {}
    for name in FAITHFUL:
        spec = alexnet.NETWORKS[name]
        kinds.setdefault((spec.orders, spec.groups, spec.norm, spec.stem_padding), name)
    return [network(name) for name in kinds.values()]


POINTERS = {"z", "bias", "y", "gradient", "dz"}


def assembled(name: str, capability: int, **fixed: Any) -> dict[str, Any]:
    """A kernel for bfloat16 as machine code -> its registers, spills and ways to memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, name)
    names = kernel.arg_names
    kinds = dict.fromkeys(POINTERS, "*bf16") | {"cells": "*u8", "sums": "*fp32"}
    kinds |= dict.fromkeys(("alpha", "k"), "fp32") | dict.fromkeys(fixed, "constexpr")
    signature = {each: kinds.get(each, "i32") for each in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(each),): value for each, value in fixed.items()},
        attrs={(names.index(each),): [["tt.divisibility", 16]]
               for each in names if signature[each].startswith("*")},
    )  # fmt: skip
    options = {"num_warps": fixed["N"] // 32, "enable_fp_fusion": True}
    made = triton.compile(source, GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    inner = ptx[: ptx.rindex("bra")] if "bra" in ptx else ptx
    return {
        "kernel": f"{name} {fixed}",
        "capability": capability,
        "vectors": len(re.findall(r"(?:ld|st)\.global\S*v[24]", ptx)),
        "single": len(re.findall(r"(?:ld|st)\.global\S*b(?:8|16)\b", ptx)),
        "exchanges": len(re.findall(r"(?:ld|st)\.shared|shfl", inner)),
        "bytes": len(made.asm["cubin"]),
        **_resources(ptx, capability),
    }


def _resources(ptx: str, capability: int) -> dict[str, int]:
    """The output of ``ptxas -v``; nothing where there is none that reads this version of PTX."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "k.ptx").write_text(ptx)
        architecture = f"sm_{capability}" + ("a" if capability == 90 else "")
        for tool in sorted(folder.glob("ptxas*")):
            done = subprocess.run(
                [tool, "-v", f"-arch={architecture}", "k.ptx", "-o", "k.cubin"],
                cwd=work, capture_output=True, text=True, check=False,
            )  # fmt: skip
            registers = re.search(r"(\d+) registers", done.stderr)
            spills = re.search(r"(\d+) bytes spill stores", done.stderr)
            if done.returncode == 0 and registers and spills:
                return {"registers": int(registers[1]), "spilled": int(spills[1])}
    return {}


def machine() -> list[dict[str, Any]]:
    """The kernels of the presets' layers, for compute capabilities 8.0 and 9.0."""
    found = []
    for capability in (80, 90):
        for lrn, first in ((True, True), (True, False), (False, True))[
            : 1 if capability < 90 else 3
        ]:
            kind, fixed = "lrn" if lrn else "pool", {"LRN": lrn, "FIRST": first}
            for way in ("forward", "backward"):
                threads = kernels.TUNING[f"{kind} {way}"]["threads"]
                found.append(assembled(f"_pool_{way}", capability, **fixed, N=threads))
        for way in ("forward", "backward"):
            given = kernels.TUNING[f"relu {way}"]
            walked = {"ROWS": given["rows"], "N": given["threads"]}
            found.append(assembled(f"_relu_{way}", capability, **walked))
    return found


if __name__ == "__main__":
    run = {"values": values, "networks": networks, "machine": machine}[sys.argv[1]]
    print(json.dumps(run()))  # noqa: T201
