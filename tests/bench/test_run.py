import pytest

from potstill.bench.measure.run import start_worker
from potstill.timing.workers import CommandFailed
from tests.bench.fake_worker import World, make_run


def test_failures_and_the_first_load_are_written_into_the_journal_and_known_when_it_is_resumed(tmp_path):
    world = World(faults={("s/fp32", "load", None): CommandFailed("BundleError: no such file")})
    run = make_run(tmp_path, world)
    for _ in range(2):
        with run.pool(run.measured_processes()) as pool:
            pool.start(pool.names)
            assert pool.names == ["t/fp32", "t/fp32#again"]
    (failure,) = run.journal.parts("failure").values()
    assert (failure["key"], failure["stage"], failure["where"], failure["kind"]) == ("s/fp32", "load", None, "error")
    assert failure["reason"] == "BundleError: no such file"
    assert run.journal.get("load", "t/fp32")["sha256"] == {"model.onnx": "t/fp32"}
    assert [key for _, key in world.asked("load")].count("s/fp32") == 1
    assert world.processes[0].timeout_s == run.bench.config.timeout_s


def test_the_usual_process_is_the_bench_worker():
    worker = start_worker(60)
    try:
        with pytest.raises(CommandFailed, match="unknown command 'sing'"):
            worker.ask({"do": "sing"})
    finally:
        worker.close()
