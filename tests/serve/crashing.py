"""Die at every single touch of the disk in turn, go on with `resume`, and compare with a run that was left alone.

python tests/serve/crashing.py FOLDER SUFFIX   (prints how many moments there were)

A process of its own, because it forks.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from potstill import files
from potstill.bundle import Manifest
from potstill.serve import predict_file as predicting
from potstill.serve.predict_file import PredictSettings, predict_file

ROWS, WINDOW = 50, 8
KILLED = 9


def fake_encoder(folder):
    manifest = Manifest.model_validate(
        {
            "task": "text-classification",
            "labels": ["long", "short"],
            "max_length": 16,
            "inputs": ["input_ids"],
            "outputs": ["logits"],
            "parameters": 1,
            "models": {"fp32": {"file": "m"}},
            "files": {},
        }
    )
    (folder / "potstill.json").write_text(manifest.model_dump_json())

    def predict(items, *, parameters=None):
        return [[{"label": "long", "score": len(item) / 100}, {"label": "short", "score": 0.0}] for item in items]

    bundle = SimpleNamespace(folder=folder, manifest_sha256="0" * 64)
    return SimpleNamespace(manifest=manifest, precision="fp32", bundle=bundle, predict=predict)


class Mortal:
    """Stands for `os`, and ends the process at the n-th call that changes the disk, half way through a write."""

    def __init__(self, moment):
        self.left = moment

    def __getattr__(self, name):
        return getattr(os, name)

    def _step(self):
        self.left -= 1
        return self.left < 0

    def write(self, descriptor, content):
        if self._step():
            os.write(descriptor, bytes(content)[: len(content) // 2])
            os._exit(KILLED)
        return os.write(descriptor, content)

    def fsync(self, descriptor):
        if self._step():
            os._exit(KILLED)
        os.fsync(descriptor)

    def ftruncate(self, descriptor, size):
        if self._step():
            os._exit(KILLED)
        os.ftruncate(descriptor, size)


class MortalPath(type(Path())):
    """Ends the process before a rename or a removal."""

    mortal = None

    def replace(self, target):
        if self.mortal and self.mortal._step():
            os._exit(KILLED)
        return super().replace(target)

    def unlink(self, missing_ok=False):
        if self.mortal and self.mortal._step():
            os._exit(KILLED)
        super().unlink(missing_ok)


def run(encoder, source, out, *, moment=None, resume=False):
    """Run in a child; return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            if moment is not None:
                files.os = predicting.os = MortalPath.mortal = Mortal(moment)
            predicting.WINDOW_ROWS = WINDOW
            predicting.Path = MortalPath
            predict_file(encoder, source, out, settings=PredictSettings(workers=2), resume=resume)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder, suffix):
    if suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), folder / "a.parquet")  # loads once what children need
    encoder, source = fake_encoder(folder), folder / "in.jsonl"
    lines = [json.dumps({"id": number, "text": "x" * (number * 7 % 13)}) for number in range(ROWS)]
    source.write_text("\n".join(lines) + "\n")
    straight = folder / f"straight{suffix}"
    assert run(encoder, source, straight) == 0
    want, out, moment = straight.read_bytes(), folder / f"out{suffix}", 0
    while (code := run(encoder, source, out, moment=moment)) != 0:
        assert code == KILLED, code
        assert not out.exists() or out.read_bytes() == want
        # It dies once more at a later moment, then is left alone.
        assert run(encoder, source, out, moment=moment % 11, resume=True) in {0, KILLED, 1}
        if not out.exists() or (folder / f".{out.name}.journal").exists():
            assert run(encoder, source, out, resume=True) == 0
        assert out.read_bytes() == want, moment
        left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
        assert not left, (moment, left)
        out.unlink()
        moment += 1
    print(moment)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
