"""Which memory goes into huge pages."""

import sys

import numpy as np
import pytest

from potstill.serve.engine import pages

SMAPS = """\
00400000-00a00000 r-xp 00000000 fe:00 12 /usr/bin/python3
Size:               6144 kB
Rss:                6144 kB
10100000-10800000 rw-p 00000000 00:00 0                                  [heap]
Size:               7168 kB
Rss:                7000 kB
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
Size:               8192 kB
Rss:                  64 kB
7f1000100000-7f1000300000 rw-p 00000000 00:00 0
Rss:                2048 kB
7f2000000000-7f2000600000 rw-p 00000000 00:00 0
Rss:                6144 kB
VmFlags: rd wr mr mw me ac sd
7f3000000000-7f3000600000 rw-s 00000000 00:01 99 /dev/shm/x
Rss:                6144 kB
7f4000000000-7f4000600000 rw-p 00000000 00:00 0                          [stack]
Rss:                6144 kB
"""


def test_memory_that_is_in_use_and_nobody_elses():
    """Not code, not a stack, not what is nearly empty, not what holds no whole huge page, not what is shared."""
    assert list(pages._full_mappings(SMAPS.splitlines())) == [(0x10200000, 6 << 20), (0x7F2000000000, 6 << 20)]


def test_a_machine_without_such_pages_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "_SMAPS", tmp_path / "smaps")
    assert pages.collapse() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
def test_numbers_stay_what_they_are():
    values = np.arange(4 << 20, dtype=np.float64)
    expected = values.sum()
    before = pages.collapse()
    assert before >= 0
    assert before % (2 << 20) == 0
    assert values.sum() == expected
