"""The process of one file in `first_token`: random tokens in given lengths, in the session that would serve it."""

from pathlib import Path

import numpy as np

from potstill.serve import OnnxSession
from potstill.timing.worker_loop import Command, Message, answer_commands, run_block

# Below them stand the special tokens of the vocabulary.
_FIRST_ORDINARY_ID = 5


class TimedFile:
    """One ONNX file, timed on texts of one length or on the lengths that it was given."""

    def __init__(self) -> None:
        self._session: OnnxSession | None = None
        self._lengths = np.zeros(0, np.int64)
        self._vocab_size = 0

    def answer(self, command: Command) -> Message:
        """Carry out a `load` or `block` command and return its reply; 0 tokens are the given lengths, all in a call."""
        if command["do"] == "load":
            self._session = OnnxSession(
                Path(command["file"]), threads=command["threads"], disabled_optimizers=command["disabled_optimizers"]
            )
            self._lengths, self._vocab_size = np.array(command["lengths"]), command["vocab_size"]
            return {}
        assert self._session is not None
        size, tokens, run = command["batch_size"], command["num_tokens"], self._session.run
        starts = range(0, len(self._lengths), size)
        wanted = [np.full(size, tokens)] if tokens else [self._lengths[start : start + size] for start in starts]
        batches = [self._feeds(lengths) for lengths in wanted]

        def call() -> None:
            for feeds in batches:
                run(feeds)

        return {"latencies_ms": run_block(call, seconds=command["seconds"], min_calls=command["min_calls"])}

    def _feeds(self, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Return texts of these lengths, padded to the longest."""
        assert self._session is not None
        mask = (np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64)
        ids = np.random.default_rng(len(lengths)).integers(_FIRST_ORDINARY_ID, self._vocab_size, size=mask.shape)
        known = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
        return {name: known[name] for name in self._session.inputs}


if __name__ == "__main__":
    answer_commands(TimedFile().answer)
