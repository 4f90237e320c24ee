"""Compiles the loader's own device kernel to PTX for a compute capability, without a device."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numba.cuda.dispatcher
from numba import types
from numba.cuda import compile_ptx  # type: ignore[attr-defined]

from imagenet_prep.jpeg.cuda import kernel
from trainer.views.cuda_colour import own_shifts


def array(dtype: Any, dimensions: int = 1) -> Any:
    return types.Array(dtype, dimensions, "C")


SIGNATURE = (
    array(types.uint8), array(types.uint8), array(types.int32, 2), array(types.int64),
    array(types.int32), types.int32, array(types.float64, 2), array(types.float32, 2),
)  # fmt: skip


def main() -> None:
    numbers = tuple(map(int, sys.argv[1].split(".")))
    # Device functions are compiled for the device at hand; there is none.
    dispatcher: Any = numba.cuda.dispatcher
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=numbers)
    compiled: Any = compile_ptx
    ptx, _ = compiled(kernel(own_shifts).py_func, SIGNATURE, cc=numbers)
    sys.stdout.write("local memory" if ".local" in ptx else "no local memory")


if __name__ == "__main__":
    main()
