"""The C library keeps what a training step frees, instead of giving it back to the system.

Activations are tens of megabytes. glibc gives blocks of that size back at once, and every
step gets them anew, zeroed page by page: a quarter of a step on a CPU.
"""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h of the GNU C library: where to stop using mmap, and how much free space to keep.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory; whether the C library took the settings.

    On Linux with glibc and on CPUs alone; elsewhere, and where MALLOC_ settings of the user
    are in the environment, nothing changes.
    """
    if not sys.platform.startswith("linux") or any(n.startswith("MALLOC_") for n in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
