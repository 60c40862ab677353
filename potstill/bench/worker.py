"""A process for one model in one precision: `python -m potstill.bench.worker`.

It reads commands from stdin and answers on stdout, one JSON object per line:

    {"do": "load", "bundle": DIR, "precision": "fp32", "threads": 2, "seed": 42}
    {"do": "block", "batch_size": 1, "num_tokens": 128, "seconds": 0.25, "min_calls": 6}  -> latencies_ms
    {"do": "score", "texts": ["text", ["first", "second"]]}                               -> logits
    {"do": "memory"}                                                                      -> bytes, by part
    {"do": "stop"}
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.bench import memory, workload
from potstill.timing.process import Message, answer_commands, run_block


class Model:
    """The loaded model, and how much memory each step of its life took."""

    def __init__(self) -> None:
        self._encoder: Any = None
        self._memory: dict[str, Any] = {"interpreter_rss_bytes": memory.resident()}
        self._vocabulary = workload.Vocabulary(0, frozenset())
        self._seed = 0

    def answer(self, command: Mapping[str, Any]) -> Message:
        """Do one command."""
        match command["do"]:
            case "load":
                return self._load(command)
            case "block":
                return self._block(command)
            case "score":
                return self._score(command["texts"])
            case "memory":
                return self._memory | {
                    "rss_bytes": memory.resident(), "uss_bytes": memory.private(), "peak_bytes": memory.peak()
                }  # fmt: skip
        raise ValueError(f"unknown command {command['do']!r}")

    def _load(self, command: Mapping[str, Any]) -> Message:
        from potstill.bundle import read_bundle
        from potstill.serve import Encoder

        self._memory["imported_rss_bytes"] = memory.resident()
        folder, start = Path(command["bundle"]), time.perf_counter()
        # A session's threads spin after a call, for the next one; while neighbours are measured in turn they would
        # take the cores from them (microsoft/onnxruntime#17011: 77 ms became 160).
        self._encoder = Encoder(folder, precision=command["precision"], threads=command["threads"], spinning=False)
        load_ms = (time.perf_counter() - start) * 1e3
        self._vocabulary = workload.read_vocabulary(read_bundle(folder, verify=False))
        self._seed = command["seed"]
        self._memory |= {
            "loaded_rss_bytes": memory.resident(), "loading_peak_bytes": memory.peak(),
            "peak_restarted": memory.restart_peak(),
        }  # fmt: skip
        return {"load_ms": load_ms}

    def _block(self, command: Mapping[str, Any]) -> Message:
        cell = workload.Cell(command["batch_size"], command["num_tokens"])
        inputs = self._encoder.manifest.inputs
        feeds = workload.make_feeds(cell, inputs=inputs, vocabulary=self._vocabulary, seed=self._seed)
        run = self._encoder.session.run
        latencies_ms = run_block(lambda: run(feeds), seconds=command["seconds"], min_calls=command["min_calls"])
        return {"latencies_ms": latencies_ms}

    def _score(self, texts: list[Any]) -> Message:
        logits = self._encoder.logits([tuple(text) if isinstance(text, list) else text for text in texts])
        return {"logits": logits.tolist()}


if __name__ == "__main__":
    answer_commands(Model().answer)
