"""The worker process that times one ONNX file, `python -m potstill.timing.session`, and the commands it answers.

{"do": "load", "file": FILE, "threads": 2, "disabled_optimizers": [...], "vocab_size": 30522, "seed": 0}
{"do": "block", "batch_size": 1, "num_tokens": 128, "seconds": 0.2, "min_calls": 2}  -> latencies_ms
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.serve import OnnxSession
from potstill.timing.worker_loop import Command, Message, answer_commands, run_block

# Below them stand the special tokens of every family's vocabulary, some of which end a text.
_FIRST_ORDINARY_ID = 5


class TimedSession:
    """One ONNX file in the session that would serve it, timed on random tokens."""

    def __init__(self) -> None:
        self._session: OnnxSession | None = None
        self._vocab_size, self._seed = 0, 0

    def answer(self, command: Command) -> Message:
        """Carry out a `load` or `block` command and return its reply."""
        if command["do"] == "load":
            self._session = OnnxSession(
                Path(command["file"]), threads=command["threads"], disabled_optimizers=command["disabled_optimizers"]
            )
            self._vocab_size, self._seed = command["vocab_size"], command["seed"]
            return {}
        assert self._session is not None
        feeds, run = self._feeds(command["batch_size"], command["num_tokens"]), self._session.run
        return {
            "latencies_ms": run_block(lambda: run(feeds), seconds=command["seconds"], min_calls=command["min_calls"])
        }

    def _feeds(self, batch_size: int, num_tokens: int) -> dict[str, NDArray[np.int64]]:
        """Return random ordinary tokens, all attended to: the same for every file with the same vocabulary."""
        assert self._session is not None
        # Seeded by the shape, so that contestants get the same tokens whatever they ran before.
        rng, shape = np.random.default_rng([self._seed, batch_size, num_tokens]), (batch_size, num_tokens)
        known = {
            "input_ids": rng.integers(_FIRST_ORDINARY_ID, self._vocab_size, size=shape),
            "attention_mask": np.ones(shape, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
        }
        return {name: known[name].astype(np.int64) for name in self._session.inputs}


if __name__ == "__main__":
    answer_commands(TimedSession().answer)
