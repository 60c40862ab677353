import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import potstill
from potstill.errors import OutputError
from potstill.files import check_free, new_folder, write_text

ROOT = Path(potstill.__file__).parents[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(folder, text="new"):
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model").write_text(text)


def content(folder):
    return (folder / "onnx" / "model").read_text()


def start(code, *arguments):
    """Start Python with `code`, and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process):
    process.kill()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def dead_pid():
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def live_pid():
    process = start("import sys, time; print('ready', flush=True); time.sleep(60)")
    yield process.pid
    kill(process)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("out", [".", "..", "/", "../here", "link"])
def test_the_folder_that_one_is_in_is_not_replaced(tmp_path, monkeypatch, out, overwrite):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    if out == "link":
        out = tmp_path / "link"
        out.symlink_to(here)
    with pytest.raises(OutputError, match="is the folder you are in, or one above it"):
        check_free(Path(out), overwrite=overwrite)
    check_free(Path("out"), overwrite=overwrite)
    check_free(Path("../her"), overwrite=overwrite)


def test_a_name_may_be_as_long_as_its_hidden_sibling_allows(tmp_path):
    with new_folder(tmp_path / ("x" * 228 + "\u00e4")):
        pass
    for name in ("x" * 231, "\u00e4" * 116):
        with pytest.raises(OutputError, match="more than 230 bytes; take a shorter one"):
            check_free(tmp_path / name, overwrite=False)


def test_a_folder_appears_when_the_block_ends_and_not_before(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as building:
        fill(building)
        assert not out.exists()
        assert building.parent == out.parent
        assert building.name == f".out.tmp-{os.getpid()}"
    assert content(out) == "new"
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_nothing(tmp_path, error):
    def build():
        with new_folder(tmp_path / "out") as building:
            fill(building)
            raise error

    with pytest.raises(error):
        build()
    assert names(tmp_path) == []


def test_a_block_that_fails_leaves_the_old_folder_as_it_was(tmp_path):
    fill(tmp_path, "old")

    def build():
        with new_folder(tmp_path / "onnx", overwrite=True) as building:
            (building / "model").write_text("half")
            raise ValueError("the work failed")

    with pytest.raises(ValueError, match="the work failed"):
        build()
    assert content(tmp_path) == "old"
    assert names(tmp_path) == ["onnx"]


def test_a_folder_with_content_is_refused_before_the_block_runs(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "old")
    with pytest.raises(OutputError, match=r"out is not empty; pass --overwrite"), new_folder(tmp_path / "out"):
        pytest.fail("the block ran")
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_overwrite_replaces_the_whole_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    (out / "stale").write_text("")
    with new_folder(out, overwrite=True) as building:
        fill(building)
        assert content(out) == "old"
    assert content(out) == "new"
    assert names(out) == ["onnx"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as building:
        fill(building)
    assert content(tmp_path / "out") == "new"


def test_a_file_in_the_way_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "out").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"out is a file; name a folder"):
            check_free(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_free_name_passes_the_check(tmp_path):
    check_free(tmp_path / "out", overwrite=False)
    (tmp_path / "out").mkdir()
    check_free(tmp_path / "out", overwrite=False)
    fill(tmp_path / "out")
    check_free(tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError):
        check_free(tmp_path / "out", overwrite=False)


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    fill(tmp_path / "disk", "old")
    (tmp_path / "out").symlink_to("disk")
    with new_folder(tmp_path / "out", overwrite=True) as building:
        fill(building)
    assert (tmp_path / "out").is_symlink()
    assert content(tmp_path / "disk") == "new"
    assert names(tmp_path) == ["disk", "out"]


HALF_BUILT = """
import sys, time
from pathlib import Path
from potstill.files import new_folder
with new_folder(Path(sys.argv[1]), overwrite=True) as building:
    (building / "half").write_text("x" * 100_000)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("existed", [False, True])
def test_a_killed_run_shows_nothing_and_the_next_one_cleans_up(tmp_path, existed):
    out = tmp_path / "out"
    if existed:
        out.mkdir()
        fill(out, "old")
    process = start(HALF_BUILT, out)
    kill(process)
    hidden = f".out.tmp-{process.pid}"
    assert names(tmp_path) == ([hidden, "out"] if existed else [hidden])
    assert not existed or (content(out) == "old" and names(out) == ["onnx"])
    with new_folder(out, overwrite=True) as building:
        fill(building)
        assert not (tmp_path / hidden).exists()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["onnx"]


KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from potstill.files import new_folder
rename = Path.rename
def rename_once(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename_once
print("ready", flush=True)
with new_folder(Path(sys.argv[1]), overwrite=True) as building:
    (building / "half").write_text("")
"""


def killed_between_renames(out):
    out.mkdir()
    fill(out, "old")
    process = start(KILLED_BETWEEN_RENAMES, out)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert names(out.parent) == [f".out.old-{process.pid}", f".out.tmp-{process.pid}"]


def test_a_run_killed_between_its_renames_loses_nothing(tmp_path):
    out = tmp_path / "out"
    killed_between_renames(out)
    with pytest.raises(OutputError, match="is not empty"), new_folder(out):
        pytest.fail("the block ran over the folder that came back")
    assert content(out) == "old"
    assert names(tmp_path) == ["out"]


def test_the_check_before_long_work_already_sees_the_folder_that_comes_back(tmp_path):
    out = tmp_path / "out"
    killed_between_renames(out)
    with pytest.raises(OutputError, match="is not empty"):
        check_free(out, overwrite=False)
    assert content(out) == "old"


def test_a_folder_that_came_back_can_be_replaced(tmp_path):
    out = tmp_path / "out"
    killed_between_renames(out)
    with new_folder(out, overwrite=True) as building:
        assert content(out) == "old"
        fill(building)
    assert content(out) == "new"
    assert names(tmp_path) == ["out"]


def test_an_old_folder_beside_a_finished_one_is_removed(tmp_path, dead_pid):
    old = tmp_path / f".out.old-{dead_pid}"
    old.mkdir()
    fill(old, "old")
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "finished")
    with pytest.raises(OutputError), new_folder(tmp_path / "out"):
        pass
    assert content(tmp_path / "out") == "finished"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "out[1]", "out.v1-2", "*"])
def test_leftovers_of_dead_runs_go_whatever_the_name_is(tmp_path, dead_pid, name):
    (tmp_path / f".{name}.tmp-{dead_pid}").mkdir()
    with new_folder(tmp_path / name) as building:
        fill(building)
    assert names(tmp_path) == [name]


def test_a_leftover_of_this_very_process_id_is_no_obstacle(tmp_path):
    (tmp_path / f".out.tmp-{os.getpid()}").mkdir()
    (tmp_path / f".out.tmp-{os.getpid()}" / "half").write_text("")
    with new_folder(tmp_path / "out") as building:
        fill(building)
    assert names(tmp_path / "out") == ["onnx"]


def test_the_folder_of_a_live_run_is_left_alone(tmp_path, live_pid):
    kept = [f".out.old-{live_pid}", f".out.tmp-{live_pid}"]
    for name in kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "work").write_text("in progress")
    with new_folder(tmp_path / "out") as building:
        fill(building)
    assert names(tmp_path) == [*kept, "out"]
    assert all((tmp_path / name / "work").read_text() == "in progress" for name in kept)


def test_a_run_of_another_user_is_alive(tmp_path, monkeypatch):
    def refuse(_pid, _signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    (tmp_path / ".out.tmp-4000000").mkdir()
    with new_folder(tmp_path / "out") as building:
        fill(building)
    assert names(tmp_path) == [".out.tmp-4000000", "out"]


def test_what_only_looks_like_a_leftover_stays(tmp_path, dead_pid):
    kept = [
        f".other.tmp-{dead_pid}",
        f".out.keep-{dead_pid}",
        ".out.tmp-notes",
        f".out.v2.tmp-{dead_pid}",
        f"out.tmp-{dead_pid}",
    ]
    for name in kept:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out") as building:
        fill(building)
    assert names(tmp_path) == sorted([*kept, "out"])


def test_a_number_that_no_process_can_have_is_dead(tmp_path):
    (tmp_path / ".out.tmp-99999999999").mkdir()
    with new_folder(tmp_path / "out") as building:
        fill(building)
    assert names(tmp_path) == ["out"]


def test_everything_is_flushed_before_the_folder_appears(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def watch(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        assert not (tmp_path / "out").exists()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    with new_folder(tmp_path / "out") as building:
        fill(building)
    out = tmp_path / "out"
    assert sorted(flushed) == sorted(path.stat().st_ino for path in (out, out / "onnx", out / "onnx" / "model"))


def test_a_file_is_written_whole_in_utf8(tmp_path):
    write_text(tmp_path / "a.json", "café\n")
    assert (tmp_path / "a.json").read_bytes() == b"caf\xc3\xa9\n"
    write_text(tmp_path / "a.json", "second")
    assert (tmp_path / "a.json").read_bytes() == b"second"
    assert names(tmp_path) == ["a.json"]


def test_a_file_that_cannot_be_written_is_what_it_was(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.json", "half \ud800")
    assert (tmp_path / "a.json").read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_file_is_flushed_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text("old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _descriptor: seen.append(file.read_text()))
    write_text(file, "new")
    assert seen == ["old"]
    assert file.read_text() == "new"
