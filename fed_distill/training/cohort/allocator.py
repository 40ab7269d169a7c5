"""Keep the memory that a step frees for the next step, instead of giving it back to the system.

A cohort on a CPU frees and takes tens of megabytes in each step; glibc by default hands large pieces back, and the
next step waits for fresh, zeroed pages: one step in eight, measured on bert-mini. Only forked processes, which train
and end (``forks``), do so: it would change how a whole program uses memory.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
_KEPT, _AHEAD, _LARGEST = 2**31 - 1, 256 * 2**20, 32 * 2**20


@cache
def keep_freed_memory() -> bool:
    """Set it for this process, once; whether its allocator (glibc's) could be told. Resident memory then stays at its
    peak."""
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is None:
        return False
    wanted = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AHEAD))
    return all(tell(parameter, value) == 1 for parameter, value in wanted)
