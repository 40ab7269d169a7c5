"""Keep memory that a step frees for the next step, instead of returning it to the system.

A cohort on a CPU frees and allocates tens of megabytes in each step. By default glibc returns large blocks, and the
next step waits for zeroed pages: an eighth of the time, measured with bert-mini. Only forked training processes
(``forks``) use this, as it changes the memory use of the whole process.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
_KEPT, _AHEAD, _LARGEST = 2**31 - 1, 256 * 2**20, 32 * 2**20


@cache
def keep_freed_memory() -> bool:
    """Configure this process, once; return whether its allocator (glibc's) supports it. Resident memory then stays at
    its peak."""
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is None:
        return False
    wanted = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AHEAD))
    return all(tell(parameter, value) == 1 for parameter, value in wanted)
