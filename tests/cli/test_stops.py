"""Ctrl-C, SIGTERM and a full disk: one line says what is kept, and the printed command goes on with it."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from potstill.cli import stopping
from potstill.distill import trainer
from potstill.errors import DiskError, OutputError
from potstill.files import check_free, machine_failure, new_folder, write_text
from tests.cli.forked import run_all

ROOT = Path(__file__).parents[2]
# As a shell starts it; without a terminal, one line stands for each stage.
POTSTILL = (sys.executable, "-m", "potstill")


def start(folder, words, **more):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*POTSTILL, *words],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **more,
    )


def stop(process, number):
    """Signal the whole group, as a terminal does; return exit code and the last line of stderr."""
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err.splitlines()[-1]


def wait_for(process, found, *, seconds=120):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def steps(folder):
    return [int(file.parent.name.rpartition("-")[2]) for file in folder.glob("checkpoint-*/COMPLETE")]


def test_a_distillation_that_is_stopped_tells_what_is_kept_and_its_command_goes_on(tiny_teacher, tiny_data, tmp_path):
    words = ["distill", str(tiny_teacher), "--data", str(tiny_data), "--layers", "1", "--epochs", "100000"]
    words += ["--set", "max_length=32", "--set", "distill.eval_every=5", "--out", "my student"]
    process = start(tmp_path, words)
    work = tmp_path / "my student.training"
    first = max(wait_for(process, lambda: steps(work)))
    code, last = stop(process, signal.SIGINT)
    assert code == 130
    what, _, command = last.partition("; go on with: ")
    assert what.startswith("stopped; kept: the checkpoint of step ")
    assert what.endswith(" in my student.training")
    assert shlex.split(command) == ["potstill", *words, "--resume"]
    process = start(tmp_path, shlex.split(command)[1:])
    wait_for(process, lambda: max(steps(work), default=0) > first + 5)
    code, last = stop(process, signal.SIGTERM)
    assert (code, last.count("--resume")) == (143, 1)
    assert not (tmp_path / "my student").exists()


def test_what_is_stopped_before_it_has_finished_anything_says_that_nothing_is_kept(tiny_bundle, tmp_path):
    words = ["predict", str(tiny_bundle), "-", "--out", "out.jsonl"]
    process = start(tmp_path, words, stdin=subprocess.PIPE)
    process.stdin.write('{"text": "we saw the old snow"}\n')  # and no more comes
    process.stdin.flush()
    wait_for(process, (tmp_path / ".out.jsonl.journal").is_file)
    code, last = stop(process, signal.SIGTERM)
    start_anew = shlex.join(["potstill", *words])
    assert (code, last) == (143, f"stopped; nothing is finished, so nothing is kept: start anew with {start_anew}")
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_that_is_stopped_goes_on_to_the_same_file(tiny_bundle, tmp_path):
    rows = [json.dumps({"text": f"we saw the old snow {number}"}) for number in range(40_000)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows) + "\n")
    words = ["predict", str(tiny_bundle), "in.jsonl", "--out", "out.jsonl", "--threads", "1"]
    process = start(tmp_path, words)
    journal = tmp_path / ".out.jsonl.journal"
    # With the second part on the disk, the first one counts whatever moment the signal comes at.
    wait_for(process, lambda: journal.is_file() and journal.read_text().count('"rows":') > 1)
    code, last = stop(process, signal.SIGINT)
    kept = int(last.partition("kept: ")[2].partition(" rows")[0].replace(",", ""))
    assert (code, 0 < kept < len(rows)) == (130, True)
    process = start(tmp_path, shlex.split(last.partition("; go on with: ")[2])[1:])
    out, err = process.communicate(timeout=120)
    assert (process.returncode, f"40000 rows, {kept} of them earlier" in out) == (0, True), err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(rows)


def test_every_stage_that_is_finished_is_kept_by_a_run(tmp_path):
    from potstill.cli.run import left_by_run

    assert left_by_run(tmp_path).kept == []
    (tmp_path / "checkpoints" / "teacher").mkdir(parents=True)
    file = tmp_path / "checkpoints" / "student.training" / "checkpoint-40" / "COMPLETE"
    file.parent.mkdir(parents=True)
    file.touch()
    left = left_by_run(tmp_path)
    assert left.kept == [
        f"the teacher in {tmp_path / 'checkpoints' / 'teacher'}",
        f"the checkpoint of step 40 in {tmp_path / 'checkpoints' / 'student.training'}",
    ]
    assert not left.done


def test_a_run_whose_first_stage_fails_does_not_stand_in_its_own_way(potstill, tiny_data, tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 4}))
    (teacher / "model.safetensors").write_bytes(b"not one")  # what a download leaves that was cut off
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps({"teacher": {"model": str(teacher)}, "data": {"name": str(tiny_data)}}))
    for _ in range(2):
        code, _, err = potstill("run", recipe, "--out", tmp_path / "out", "--set", "max_length=32")
        assert (code, "already" in err) == (2, False), err
        assert not (tmp_path / "out").exists()
    # Killed before it could clear up, it leaves the recipe alone.
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "run.json").write_text("{}")
    assert "already" not in potstill("run", recipe, "--out", tmp_path / "out", "--set", "max_length=32")[2]
    (tmp_path / "out" / "student").mkdir(parents=True)
    (tmp_path / "out" / "run.json").write_text("{}")
    err = potstill("run", recipe, "--out", tmp_path / "out", "--set", "max_length=32")[2]
    assert "holds a run already (the student's bundle); pass --resume" in err


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file data/0"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:24])
def test_a_full_disk_is_one_error_whatever_a_library_calls_it(tmp_path, error):
    def build():
        with new_folder(tmp_path / "bundle"):
            raise error

    with pytest.raises(DiskError, match=r"bundle cannot be written: .* is reached; make room$") as caught:
        build()
    assert (caught.value.exit_code, caught.value.__cause__, list(tmp_path.iterdir())) == (3, error, [])


def test_what_is_no_fault_of_the_machine_stays_what_it_is():
    assert machine_failure(ValueError("no space in this name")) is None
    assert machine_failure(OSError(errno.ENOENT, "No such file", "x")) is None
    assert isinstance(machine_failure(PermissionError(errno.EACCES, "denied", "/root/x")), OutputError)


def test_a_disk_that_is_full_at_a_checkpoint_keeps_the_one_before(
    potstill, tiny_teacher, tiny_data, tmp_path, monkeypatch
):
    saved = []

    def save_model(model, file):
        if saved:
            Path(file).write_bytes(b"half")
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        saved.append(file)
        safetensors.torch.save_model(model, file)

    monkeypatch.setattr(trainer, "save_model", save_model)
    code, out, err = potstill(
        "distill",
        tiny_teacher,
        "--data",
        tiny_data,
        "--layers",
        "1",
        "--epochs",
        "2",
        "--set",
        "max_length=32",
        "--out",
        tmp_path / "student",
    )
    work = tmp_path / "student.training"
    (last,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, last) == (3, "", err.splitlines()[-1])
    assert last.startswith(f"error: {work / 'checkpoint-12'} cannot be written: the end of the disk is reached")
    assert f"; kept: the checkpoint of step 6 in {work}; go on with: potstill distill " in last
    assert last.endswith(" --resume")
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_file_that_grows_too_large_is_told_in_one_line(tmp_path):
    jobs = [{"argv": ["recipes", "sst2", "--copy", "mine.yaml"], "cwd": str(tmp_path), "file_size": 100}]
    ((code, out, err),) = run_all(jobs)
    assert (code, out) == (3, "")
    assert err.startswith("error: mine.yaml cannot be written: a quota or the largest size of a file is reached")
    assert (len(err.splitlines()), list(tmp_path.iterdir())) == (1, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_written_to_is_refused_at_once(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="permission denied"):
            check_free(tmp_path / "out", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="Linux alone has /proc")
def test_a_place_that_takes_no_folders_is_refused_at_once():
    with pytest.raises(OutputError, match=r"takes no folders|cannot be used"):
        check_free(Path("/proc/potstill"), overwrite=False)
    with pytest.raises(OutputError, match="is where a disk is mounted"):
        check_free(Path("/proc"), overwrite=True)


def test_a_file_that_cannot_be_written_keeps_what_it_was(tmp_path, monkeypatch):
    file = tmp_path / "glue.json"
    write_text(file, "before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"glue\.json cannot be written"):
        write_text(file, "after")
    assert (file.read_text(), [path.name for path in tmp_path.iterdir()]) == ("before", ["glue.json"])


def test_what_has_no_handler_of_its_own_says_that_nothing_was_begun():
    restore = stopping.install()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stopping.after_signal() == "stopped; nothing was begun"
        assert stopping.signal_number() == signal.SIGTERM
    finally:
        restore()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
