import json
import os

import pytest

from potstill import machine


def cgroup(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("text", "cores"),
    [("200000 100000", 2.0), ("150000 100000", 1.5), ("50000 100000", 0.5), ("20000 10000", 2.0), ("100000", 1.0)],
)
def test_a_cgroup_v2_quota_is_limit_over_period(tmp_path, text, cores):
    assert machine.cpu_quota(cgroup(tmp_path, {"cpu.max": text})) == cores


def test_a_cgroup_v2_without_limit_has_no_quota(tmp_path):
    assert machine.cpu_quota(cgroup(tmp_path, {"cpu.max": "max 100000"})) is None


def test_a_cgroup_v1_quota_is_limit_over_period(tmp_path):
    period = {"cpu/cpu.cfs_period_us": 100000}
    assert machine.cpu_quota(cgroup(tmp_path, {"cpu/cpu.cfs_quota_us": 250000, **period})) == 2.5
    assert machine.cpu_quota(cgroup(tmp_path, {"cpu/cpu.cfs_quota_us": -1, **period})) is None


def test_cgroup_v2_is_asked_before_v1(tmp_path):
    older = {"cpu/cpu.cfs_quota_us": 100000, "cpu/cpu.cfs_period_us": 100000}
    assert machine.cpu_quota(cgroup(tmp_path, {"cpu.max": "300000 100000", **older})) == 3.0


def test_a_machine_without_cgroups_has_no_quota(tmp_path):
    assert machine.cpu_quota(tmp_path) is None
    assert machine.cpu_quota(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [(8, 2.0, 2), (8, 1.5, 2), (8, 0.1, 1), (2, 16.0, 2), (4, None, 4), (1, 0.5, 1)],
)
def test_available_cores_are_the_affinity_cut_by_the_quota_and_at_least_one(monkeypatch, affinity, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(affinity)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.available_cores() == cores


def test_a_system_without_affinity_counts_its_cores_or_one(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.available_cores() == 1


def test_a_containers_memory_limit_wins_over_the_machines(tmp_path):
    assert machine.memory_limit_bytes(cgroup(tmp_path, {"memory.max": "1048576"})) == 1_048_576


def test_a_cgroup_v1_memory_limit_is_read(tmp_path):
    assert machine.memory_limit_bytes(cgroup(tmp_path, {"memory/memory.limit_in_bytes": 2097152})) == 2_097_152


def test_no_limit_and_the_v1_word_for_it_give_the_machines_memory(tmp_path, monkeypatch):
    read = machine.read_or_empty
    monkeypatch.setattr(
        machine, "read_or_empty", lambda file: "MemTotal:  1000 kB" if file.name == "meminfo" else read(file)
    )
    assert machine.memory_limit_bytes(tmp_path) == 1_024_000
    assert machine.memory_limit_bytes(cgroup(tmp_path, {"memory.max": "max"})) == 1_024_000
    assert machine.memory_limit_bytes(cgroup(tmp_path, {"memory.max": "9223372036854771712"})) == 1_024_000


CPU_INFO = "model name\t: Some CPU @ 2 GHz \nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 hypervisor\n"
ARM_INFO = "Features\t: fp asimd asimddp bf16\n"


@pytest.fixture
def cpu_info(monkeypatch):
    def install(text):
        monkeypatch.setattr(machine, "read_or_empty", lambda _file: text)
        machine.cpu_features.cache_clear()

    yield install
    machine.cpu_features.cache_clear()


def test_only_the_features_that_decide_are_named(cpu_info):
    cpu_info(CPU_INFO)
    assert machine.cpu_features() == {"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}
    assert machine.cpu_name() == "Some CPU @ 2 GHz"
    assert machine.has_fast_int8()
    assert machine.has_fast_bf16()


def test_arm_names_its_features_in_another_line(cpu_info):
    cpu_info(ARM_INFO)
    assert machine.cpu_features() == {"asimddp", "bf16"}
    assert machine.has_fast_int8()


def test_avx2_alone_is_neither_fast_int8_nor_fast_bf16(cpu_info):
    cpu_info("flags : avx2 avx512f\n")
    assert not machine.has_fast_int8()
    assert not machine.has_fast_bf16()


def test_where_the_system_is_silent_the_library_is_asked(cpu_info, monkeypatch):
    monkeypatch.setattr(machine, "_flags_by_library", lambda: ["avx2", "sse"])
    cpu_info("")
    assert machine.cpu_features() == {"avx2"}


def test_versions_name_what_is_installed_and_nothing_else():
    found = machine.versions()
    assert {"numpy"} <= set(found) <= set(machine._PACKAGES)
    assert all(found.values())


def test_the_description_survives_json():
    described = machine.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["cores"] >= 1
    assert described["cpu"]
    assert described["cpu_features"] == sorted(described["cpu_features"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/usr/bin/potstill", "export", "my model", "--out", "out"], "potstill export 'my model' --out out"),
        (["/venv/site-packages/potstill/__main__.py", "doctor"], "potstill doctor"),
        (["train.py", "--data", "texts"], None),
        (["/venv/site-packages/pytest/__main__.py", "-q"], None),
        (["-c"], None),
        ([""], None),
    ],
)
def test_only_potstills_own_command_line_is_a_command_of_potstill(monkeypatch, argv, said):
    monkeypatch.setattr("sys.argv", argv)
    assert machine.command_line() == said
