"""Compiles every device kernel to PTX for a compute capability, without a device.

    python -m tests.kit.jpeg_ptx 9.0 [N: only every N-th kernel]

Prints a line for each: whether it uses local memory and, where Triton brings its assembler,
registers and spills.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba.cuda.dispatcher
from numba import types as _types

from imagenet_prep.jpeg import cuda, kernels

types: Any = _types
i32, i64, f32 = types.int32, types.int64, types.float32


def array(dtype: Any, dimensions: int = 1) -> Any:
    return types.Array(dtype, dimensions, "C")


JOBS, BEGINS, STATUS = array(i32, 2), array(i64), array(i32)
ENTRIES = (array(i32), array(types.int16, 2))
OUT = (types.uint8, f32, types.float16, types.int16)
FILTERS = (array(i32, 3), array(f32, 3))


def variants() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(name, kernel, types of its arguments) of every variant."""
    huffman = (
        array(types.uint32), JOBS, BEGINS, *ENTRIES, array(types.uint16),
        array(types.int16), STATUS, i32, i32, i32,
    )  # fmt: skip
    for single in (0, 1):
        yield f"huffman {single}", cuda.kernel(kernels.huffman_kernel, single), huffman
    idct = (array(i64), JOBS, array(i64), array(types.uint64), STATUS, i32)
    yield "idct", cuda.kernel(kernels.idct_kernel), idct
    yield "weigh", cuda.kernel(kernels.weigh_kernel), (array(i32, 2), i32, i32, *FILTERS)
    data = (array(types.uint8), array(types.uint8), JOBS, BEGINS, array(i32, 2), i32)
    for form, dtype in enumerate(OUT):
        view = (
            *data, array(f32, 3), i32, array(f32, 2), array(f32), *FILTERS, array(dtype), STATUS,
            i32, i32, types.UniTuple(i64, 3),
        )  # fmt: skip
        for layout in range(3):
            for resized in (0, 1):
                name = f"view {cuda.DTYPES[form]} {cuda.LAYOUTS[layout]} {resized}"
                yield name, cuda.kernel(kernels.view_kernel, form, layout, resized), view


def assembled(ptx: str, capability: str) -> str:
    """What the assembler tells of the kernel. The version in the PTX is made older than the
    assembler, which knows all of its instructions."""
    found = importlib.util.find_spec("triton")
    folders = found.submodule_search_locations if found else None
    program = Path(folders[0]) / "backends" / "nvidia" / "bin" / "ptxas" if folders else Path()
    if not program.is_file():
        return "not assembled"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(re.sub(r"\.version \S+", ".version 8.5", ptx, count=1))
        command = [str(program), "-v", f"-arch=sm_{capability.replace('.', '')}", str(source)]
        done = subprocess.run(
            [*command, "-o", f"{folder}/kernel.cubin"], capture_output=True, text=True, check=True
        )
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
    registers = re.search(r"Used (\d+) registers", done.stderr)
    return f"{spilled} bytes spilled, {registers[1] if registers else '?'} registers"


def main() -> None:
    capability = sys.argv[1]
    numbers = tuple(map(int, capability.split(".")))
    # Device functions are compiled for the device at hand; there is none.
    dispatcher: Any = numba.cuda.dispatcher
    target: Any = numba.cuda
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=numbers)
    every = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for name, kernel, signature in list(variants())[::every]:
        ptx, _ = target.compile_ptx(kernel.py_func, signature, cc=numbers)
        local = "local memory" if ".local" in ptx else "no local memory"
        sys.stdout.write(f"{name}: {local}, {assembled(ptx, capability)}\n")


if __name__ == "__main__":
    main()
