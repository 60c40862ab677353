"""The process of one contestant: `python worker.py ENGINE`, one of `LOADERS`, in that engine's environment.

It answers as `potstill.timing.worker_loop` does:

    {"do": "load", ..., "threads": 2, "vocab_size": 30522, "seed": 0}
    {"do": "block", "batch_size": 1, "num_tokens": 128, "seconds": 0.2, "min_calls": 2}   -> latencies_ms
    {"do": "answer", "batch_size": 8, "num_tokens": 128}                     -> logits, seconds, peak_rss_bytes
    {"do": "texts", "file": "judged.npz", "batch_size": 32}                  -> logits

Every engine gets the settings that its own documentation gives for lowest latency. What turns arrays into the engine's
own tensors is outside of the timed call where the engine has such tensors.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inputs import make_feeds, read_batches

from potstill.timing.worker_loop import answer_commands, run_block

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Engine:
    """A loaded model: the names of its inputs, and `bind`, which makes of feeds a call that returns the logits."""

    inputs: list[str]
    bind: Callable[[Feeds], Callable[[], Any]]


def load_torch(command: Mapping[str, Any]) -> Engine:
    """Load a checkpoint folder, eager or compiled, in fp32 or bf16."""
    # Compiled code is kept between runs, and compiled in this process: a helper would not stop when this one does.
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": command["cache"], "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    import torch
    from transformers import AutoModelForSequenceClassification

    from potstill.checkpoint import accepted_inputs

    torch.set_num_threads(command["threads"])
    dtype = getattr(torch, command["dtype"])
    model = AutoModelForSequenceClassification.from_pretrained(command["checkpoint"], dtype=dtype).eval()
    names = accepted_inputs(model)
    # One graph per shape: compiling for any shape at once is slower afterwards.
    run = torch.compile(model, dynamic=False) if command["compiled"] else model

    def bind(feeds: Feeds) -> Callable[[], Any]:
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}

        @torch.inference_mode()
        def call() -> Any:
            return run(**tensors).logits.float().numpy()

        return call

    return Engine(names, bind)


def load_onnxruntime(command: Mapping[str, Any]) -> Engine:
    """Open a file with the session's defaults, as optimum's ORTModel does, except for the threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = command["threads"]
    session = onnxruntime.InferenceSession(command["file"], options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return Engine(names, lambda feeds: lambda: session.run(None, feeds)[0])


def load_openvino(command: Mapping[str, Any]) -> Engine:
    """Compile a file for low latency; refuse where OpenVINO would compute in another precision than asked."""
    os.environ["CI"] = "true"  # else importing it starts a process that reports so to its makers
    import openvino

    asked = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": command["threads"],
        "INFERENCE_PRECISION_HINT": command["precision"],
    }
    compiled = openvino.Core().compile_model(command["file"], "CPU", asked)
    given = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if given != command["precision"]:
        raise ValueError(f"asked for {command['precision']}, OpenVINO computes in {given} on this CPU")
    names = [port.get_any_name() for port in compiled.inputs]
    return Engine(names, lambda feeds: lambda: compiled(feeds)[0])


def load_potstill(command: Mapping[str, Any]) -> Engine:
    """Open a bundle's file in the session that serves it."""
    from potstill.serve import OnnxSession

    session = OnnxSession(
        Path(command["file"]), threads=command["threads"], disabled_optimizers=command["disabled_optimizers"]
    )
    return Engine(list(session.inputs), lambda feeds: lambda: session.run(feeds)["logits"])


def load_potstill_openvino(command: Mapping[str, Any]) -> Engine:
    """Open a bundle's file in the session that serves it with `--engine openvino`."""
    from potstill.serve.openvino_session import OpenVinoSession

    session = OpenVinoSession(Path(command["file"]), threads=command["threads"])
    return Engine(list(session.inputs), lambda feeds: lambda: session.run(feeds)["logits"])


LOADERS = {
    "torch": load_torch,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "potstill": load_potstill,
    "potstill-openvino": load_potstill_openvino,
}


class RaceEntry:
    """One engine with one model."""

    def __init__(self, kind: str) -> None:
        self._load = LOADERS[kind]
        self._engine: Engine | None = None
        self._source: dict[str, int] = {}

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Do one command."""
        if command["do"] == "load":
            self._engine = self._load(command)
            self._source = {"vocab_size": command["vocab_size"], "seed": command["seed"]}
            return {}
        assert self._engine is not None
        if command["do"] == "texts":
            batches = read_batches(Path(command["file"]), self._engine.inputs, batch_size=command["batch_size"])
            return {"logits": [row for feeds in batches for row in np.asarray(self._engine.bind(feeds)()).tolist()]}
        size = {"batch_size": command["batch_size"], "num_tokens": command["num_tokens"]}
        call = self._engine.bind(make_feeds(self._engine.inputs, **size, **self._source))
        if command["do"] == "answer":
            logits = np.asarray(call(), dtype=np.float64).tolist()
            start = time.perf_counter()
            call()  # the first one also compiled
            return {"logits": logits, "seconds": time.perf_counter() - start, "peak_rss_bytes": peak_rss_bytes()}
        return {"latencies_ms": run_block(call, seconds=command["seconds"], min_calls=command["min_calls"])}


def peak_rss_bytes() -> int | None:
    """Return the largest resident set this process had, where Linux tells it."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    answer_commands(RaceEntry(sys.argv[1]).answer)
