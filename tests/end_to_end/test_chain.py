"""The whole chain in real processes: killed in every stage, gone on with, and true in what it reports."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

SETTINGS = (
    "teacher.scratch.num_layers=2",
    "teacher.scratch.hidden_size=32",
    "teacher.scratch.num_heads=2",
    "teacher.scratch.intermediate_size=32",
    "teacher.scratch.vocab_size=300",
    "teacher.scratch.epochs=12",
    "teacher.scratch.learning_rate=5e-3",
    "student.layers=1",
    "max_length=32",
    "distill.learning_rate=5e-3",
    "distill.checkpoint_every=5",
    "distill.epochs=30",
    "bench.batch_sizes=[1]",
    "bench.num_tokens=[16]",
    "bench.budget_s=null",
    "bench.rounds=5",
    "bench.launches=2",
    "bench.extra_launches=0",
    "bench.block_s=0.05",
    "bench.warm_up_s=0.1",
    "bench.peak=false",
    "bench.realistic=false",
    "bench.throughput_batch_sizes=[]",
    "bench.thread_scaling=false",
    "bench.compressed=false",
    "bench.cold_starts=1",
)


class Run:
    """A `potstill run` in a process group of its own."""

    def __init__(self, data, out, *extra):
        settings = [word for setting in (*SETTINGS, f"data.name={data}") for word in ("--set", setting)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "potstill", "run", "quickstart", "--out", str(out), *settings, *extra],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        self.said.extend(iter(self.process.stderr.readline, ""))

    def wait_until(self, condition):
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, "".join(self.said)
            assert time.monotonic() < deadline, "".join(self.said)
            time.sleep(0.02)

    def kill(self):
        """Kill the run alone, as the kernel would; what it started has to notice by itself."""
        self.process.kill()
        self.end()

    def end(self):
        """Wait for the end and return the exit code; every process that the run started has gone then."""
        try:
            code = self.process.wait(timeout=240)
            self._reader.join(timeout=30)
            assert not self._reader.is_alive(), "a process of the ended run still holds its stderr"
        finally:
            self.process.kill()
            self.process.stdout.close()
            self.process.stderr.close()
        return code

    def finish(self):
        out = self.process.stdout.read()
        assert self.end() == 0, "".join(self.said)
        return out


def visible(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()


@pytest.mark.timeout(600)
def test_a_run_killed_in_every_stage_goes_on_and_ends_well(tiny_data, tmp_path):
    out = tmp_path / "out"
    training = out / "checkpoints" / "student.training"

    first = Run(tiny_data, out)
    first.wait_until(lambda: any(training.glob("checkpoint-*/COMPLETE")))
    first.kill()
    assert visible(out) == {"run.json", "checkpoints"}
    assert not (out / "checkpoints" / "student").exists()

    second = Run(tiny_data, out, "--resume")
    second.wait_until(lambda: any(out.glob(".student.tmp-*/onnx/model.onnx")))
    second.kill()
    assert visible(out) == {"run.json", "checkpoints", "teacher"}
    assert json.loads((out / "checkpoints" / "student" / "distill.json").read_text())["resumed_from"] >= 5
    said = "".join(second.said)
    assert all(part in said for part in ("\nsteps  ", "\ntime        about ", "\ndistil the student: done"))

    third = Run(tiny_data, out, "--resume")
    samples = out / ".report.bench" / "samples.jsonl"
    third.wait_until(lambda: samples.is_file() and samples.read_text().count('"round"') >= 3)
    third.kill()
    assert visible(out) == {"run.json", "checkpoints", "teacher", "student"}
    kept = samples.read_text().splitlines()[:-1]  # the last one may be torn

    printed = Run(tiny_data, out, "--resume").finish()
    assert visible(out) == {"run.json", "checkpoints", "teacher", "student", "report"}
    assert visible(out / "report") == {"report.json", "report.md", "report.html", "samples.jsonl"}
    assert (out / "report" / "samples.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert not samples.exists()
    assert not [path.name for path in out.rglob(".*.tmp-*")]
    commands = ("Report:", "Ask:", "Serve:", "        curl")
    table = [line for line in printed.splitlines() if not line.startswith(commands)]
    assert max(map(len, table)) <= 100
    ask = next(line.removeprefix("Ask:") for line in printed.splitlines() if line.startswith("Ask:"))
    answered = subprocess.run(["sh", "-c", ask], capture_output=True, text=True, check=True).stdout
    assert json.loads(answered)["answer"][0]["label"] in {"0", "1"}
    _check_report(json.loads((out / "report" / "report.json").read_text()), out)

    other = Run(tiny_data, out, "--resume", "--set", "seed=7")
    assert other.end() == 2
    assert "differs in seed" in "".join(other.said)


def _check_report(report, out):
    rows = {row["key"]: row for row in report["contestants"]}
    assert set(rows) == {"teacher/fp32", "teacher/int8", "student/fp32", "student/int8"}
    for role in ("teacher", "student"):
        manifest = json.loads((out / role / "potstill.json").read_text())
        model = report["models"][role]
        assert model["parameters"] == manifest["parameters"]
        for precision, record in manifest["models"].items():
            file, row = out / role / record["file"], rows[f"{role}/{precision}"]
            assert row["file_bytes"] == file.stat().st_size
            assert row["sha256"][record["file"]] == manifest["files"][record["file"]]["sha256"]
    (quality,) = report["quality"]
    scores = {row["key"]: row["value"] for row in quality["scores"]}
    assert {row["key"] for row in report["latency"]} == set(scores) == set(rows)
    assert quality["num_examples"] == 80
    trained = json.loads((out / "checkpoints" / "student" / "distill.json").read_text())
    assert scores["student/fp32"] == pytest.approx(trained["student"]["scores"]["accuracy"])
    assert [claim["id"] for claim in report["claims"]] == ["size", "file", "speed", "quality"]
    assert {claim["verdict"] for claim in report["claims"]} <= {"PASS", "FAIL", "INCONCLUSIVE"}


def test_ctrl_c_stops_with_one_line(tiny_data, tmp_path):
    run = Run(tiny_data, tmp_path / "out")
    run.wait_until(lambda: any("train the teacher" in line for line in run.said))
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end() == 130
    assert "Traceback" not in "".join(run.said)
    assert run.said[-1].startswith("stopped")
