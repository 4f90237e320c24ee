"""Pixels -> their sums, in machine code: the one loop that statistics spend their time in.

Written in the language of LLVM and compiled when it is first asked for, which takes 60 ms in
each worker; importing numba for the same loop takes half a second, and NumPy eight times as
long per picture. Eight pixels at a time, each the four bytes red, green, blue and one that
does not matter; whatever the machine's vectors are, LLVM cuts the eight to fit.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

PIXELS_AT_ONCE = 8
# A lane adds up one pixel of eight, of at most 255 * 255 levels²: 2^19 / 8 * 255² < 2^32.
MAX_PIXELS = 1 << 19
PRODUCTS = ("rr", "rg", "rb", "gg", "gb", "bb")

AddPixels = Callable[[int, int, int, int, int], None]
"""``add(pixels, count, red_blue, green, products)``, all but ``count`` addresses of memory.

``pixels`` are ``count`` words of four bytes, ``count`` a multiple of PIXELS_AT_ONCE up to
MAX_PIXELS. ``red_blue`` and ``green`` are uint16 pairs, one pair for each pixel, that its
(red, blue) and (green, fourth byte) are added to, so they hold 257 pictures. ``products`` are
six uint64 in the order of PRODUCTS.
"""

_CODE = """
declare i64 @llvm.vector.reduce.add.v8i64(<8 x i64>)

define void @add(ptr noalias %pixels, i64 %count, ptr noalias %red_blue, ptr noalias %green,
                 ptr noalias %products) {
entry:
  br label %loop

loop:
  %at = phi i64 [ 0, %entry ], [ %next, %loop ]
PHIS
  %pixel.at = getelementptr i32, ptr %pixels, i64 %at
  %pixel = load <8 x i32>, ptr %pixel.at, align 4
  ; Two channels to a word of 32 bits, 16 for each: red and blue, green and the fourth.
  %shifted = lshr <8 x i32> %pixel, EIGHT
  %even = and <8 x i32> %pixel, PAIR
  %odd = and <8 x i32> %shifted, PAIR
  %even.at = getelementptr i32, ptr %red_blue, i64 %at
  %even.old = load <8 x i32>, ptr %even.at, align 4
  %even.new = add <8 x i32> %even.old, %even
  store <8 x i32> %even.new, ptr %even.at, align 4
  %odd.at = getelementptr i32, ptr %green, i64 %at
  %odd.old = load <8 x i32>, ptr %odd.at, align 4
  %odd.new = add <8 x i32> %odd.old, %odd
  store <8 x i32> %odd.new, ptr %odd.at, align 4
  %r = and <8 x i32> %pixel, BYTE
  %g = and <8 x i32> %shifted, BYTE
  %b = lshr <8 x i32> %even, SIXTEEN
MULTIPLY
  %next = add i64 %at, 8
  %more = icmp ult i64 %next, %count
  br i1 %more, label %loop, label %done

done:
STORE
  ret void
}
"""
_PHI = "  %{p} = phi <8 x i32> [ zeroinitializer, %entry ], [ %{p}.sum, %loop ]"
_MULTIPLY = """\
  %{p}.one = mul nuw <8 x i32> %{a}, %{b}
  %{p}.sum = add nuw <8 x i32> %{p}, %{p}.one"""
_STORE = """\
  %{p}.wide = zext <8 x i32> %{p}.sum to <8 x i64>
  %{p}.total = call i64 @llvm.vector.reduce.add.v8i64(<8 x i64> %{p}.wide)
  %{p}.at = getelementptr i64, ptr %products, i64 {k}
  %{p}.old = load i64, ptr %{p}.at
  %{p}.new = add i64 %{p}.old, %{p}.total
  store i64 %{p}.new, ptr %{p}.at"""


def _code() -> str:
    """The text above with its six products and constants written out."""
    code = _CODE
    for name, value in {"EIGHT": 8, "PAIR": 0x00FF00FF, "BYTE": 0xFF, "SIXTEEN": 16}.items():
        code = code.replace(name, "<" + ", ".join([f"i32 {value}"] * PIXELS_AT_ONCE) + ">")
    for name, line in {"PHIS": _PHI, "MULTIPLY": _MULTIPLY, "STORE": _STORE}.items():
        lines = (line.format(p=p, a=p[0], b=p[1], k=k) for k, p in enumerate(PRODUCTS))
        code = code.replace(name, "\n".join(lines))
    return code


@functools.cache
def add_pixels() -> AddPixels:
    """The compiled loop, for the processor that this runs on."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_code())
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    address = ctypes.c_void_p
    prototype = ctypes.CFUNCTYPE(None, address, ctypes.c_int64, address, address, address)
    function = prototype(engine.get_function_address("add"))
    function.code = engine  # type: ignore[attr-defined]  # it owns the code, so it must live
    return function
