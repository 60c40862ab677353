import mmap
import subprocess
import sys

import psutil
import pytest

from potstill.bench.measure import memory
from potstill.timing.workers import child_environment

MIB = 2**20


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A /proc/self of one's own."""
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    return tmp_path


def test_resident_and_shares_are_those_that_psutil_reads():
    full = psutil.Process().memory_full_info()
    unique, proportional = memory.shares()
    # Other threads allocate between the two readings.
    assert memory.resident() == pytest.approx(full.rss, abs=4 * MIB)
    assert unique == pytest.approx(full.uss, abs=4 * MIB)
    assert proportional == pytest.approx(full.pss, abs=4 * MIB)
    assert unique <= proportional <= full.rss + 4 * MIB


def test_numbers_come_from_the_kernels_files(process):
    (process / "statm").write_text("9999 300 20 1 0 40 0\n")
    (process / "status").write_text("Name:\tpython\nVmPeak:\t 99 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n")
    (process / "smaps_rollup").write_text(
        "00-ff ---p 00 00:00 0 [rollup]\nRss: 900 kB\nPss:   700 kB\nPss_Anon: 5 kB\n"
        "Private_Clean:  40 kB\nPrivate_Dirty:  600 kB\n"
    )
    assert memory.resident() == 300 * 4096
    assert memory.peak() == 2 * MIB
    assert memory.shares() == (640 * 1024, 700 * 1024)


def test_without_the_kernels_files_psutil_and_getrusage_answer(process):
    assert memory.resident() == pytest.approx(psutil.Process().memory_info().rss, abs=4 * MIB)
    assert memory.peak() >= memory.resident() - 4 * MIB
    assert memory.shares()[0] > 0
    assert not (process / "nowhere").exists()


def test_the_peak_remembers_what_is_free_again_until_it_is_restarted():
    memory.restart_peak()
    # Not from malloc, which may have that much free in a process of other tests, and keep it.
    with mmap.mmap(-1, 80 * MIB) as block:
        block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)
        held = memory.resident()
    assert memory.resident() < held - 70 * MIB
    assert memory.peak() >= held - 4 * MIB
    if not memory.restart_peak():
        pytest.skip("this system does not let a process restart its peak (/proc/self/clear_refs)")
    assert memory.peak() < held - 60 * MIB


def test_a_system_that_does_not_restart_the_peak_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "nowhere")
    assert not memory.restart_peak()
    assert not memory.end_first()


def test_growth_is_noted_step_by_step(process):
    def holds(pages, peak_kib):
        (process / "statm").write_text(f"9 {pages} 1 1 0 1 0\n")
        (process / "status").write_text(f"VmHWM:\t{peak_kib} kB\n")

    (process / "smaps_rollup").write_text("Pss: 3 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 1 kB\n")
    growth = memory.MemoryGrowth(interpreter_rss_bytes=7)
    holds(2, 8)
    growth.imported()
    holds(5, 40)
    growth.loaded()
    assert (process / "clear_refs").read_text() == "5"
    holds(6, 28)
    assert growth.now() == {
        "interpreter_rss_bytes": 7,
        "imported_rss_bytes": 2 * 4096,
        "loaded_rss_bytes": 5 * 4096,
        "loading_peak_bytes": 40960,
        "peak_bytes": 28672,
        "after_rss_bytes": 6 * 4096,
        "after_uss_bytes": 2048,
        "after_pss_bytes": 3072,
    }


@pytest.mark.parametrize(("allowed", "expected"), [("268435456\n", 256 * MIB), ("max\n", None), (None, None)])
def test_a_containers_limit_is_told_and_the_machines_memory_is_not(tmp_path, allowed, expected):
    if allowed:
        (tmp_path / "memory.max").write_text(allowed)
    assert memory.container_limit(tmp_path) == expected


def test_a_limit_beyond_the_machine_limits_nothing(tmp_path):
    # What cgroup v1 says where nothing is limited.
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory.container_limit(tmp_path) is None


@pytest.mark.parametrize(
    "message",
    [
        "std::bad_alloc",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: bad allocation",
        "Failed to allocate memory for requested buffer of size 98304",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes",
        "CUDA error 2: cudaErrorMemoryAllocation: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
    ],
)
def test_engines_that_run_out_of_memory_are_understood(message):
    assert memory.ran_out(RuntimeError(message))


def test_the_reason_behind_an_error_counts():
    error = RuntimeError("the file failed to run")
    assert not memory.ran_out(error)
    error.__cause__ = MemoryError()
    assert memory.ran_out(error)
    assert not memory.ran_out(RuntimeError("indices are out of bounds of memory layout"))


def test_measuring_an_empty_interpreter_fills_it_with_nothing():
    libraries = {"numpy", "pydantic", "psutil", "onnxruntime"}
    code = f"import sys, potstill.bench.worker; print({libraries} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=child_environment()
    )
    assert done.stdout == "set()\n"
