"""Weights in huge pages: on a CPU nearly every run reads all of them, and looking pages up is a few percent of that.

With pages of 4 KiB the weights of a DistilBERT are 65,000 pages; of 2 MiB they are 128. glibc's own switch
(GLIBC_TUNABLES=glibc.malloc.hugetlb) must be in the environment before the process begins, so this asks the kernel
afterwards: MADV_COLLAPSE, since Linux 6.1.
"""

import ctypes
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_HUGE = 2 << 20
_MADV_COLLAPSE = 25
# Mappings of which less than this share is in use would grow: the stacks of threads, an allocator's reserves.
_RESIDENT = 0.9
_SMAPS = Path("/proc/self/smaps")
# Private and writable memory without a file: `[heap]`, or no name.
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0\s*(?:\[heap\])?$")


def collapse() -> int:
    """Put what is in memory now into huge pages, as far as the kernel does that; return how many bytes it did.

    It takes 0.1 to 0.3 s per 100 MB. Where there is no such kernel it does nothing.
    """
    try:
        found = list(_full_mappings(_SMAPS.read_text().splitlines()))
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(size for start, size in found if madvise(start, size, _MADV_COLLAPSE) == 0)


def _full_mappings(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Give the start and size of the whole huge pages within each mapping that is nearly all in use."""
    start = end = 0
    for line in lines:
        mapping = _MAPPING.match(line)
        if mapping is not None:
            start, end = (int(edge, 16) for edge in mapping.groups())
        elif line.startswith("Rss:") and end:
            resident = int(line.split()[1]) * 1024
            first, last = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
            if last > first and resident >= _RESIDENT * (end - start):
                yield first, last - first
            end = 0
