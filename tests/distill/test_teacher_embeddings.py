"""A sentence-transformers teacher's vectors are those of its own modules, not of the student's pooling."""

import numpy as np
import pyarrow
import torch

from potstill.bench.runners.torch_runner import open_runner
from potstill.checkpoint import load_checkpoint
from potstill.distill.batches import TEACHER_VECTORS
from potstill.distill.teacher_embeddings import add_teacher_vectors, teacher_head
from potstill.progress import silent
from potstill.tasks import FEATURE_EXTRACTION
from tests.checkpoint.sentence_folders import dense, make_folder, old_pooling

TEXTS = ["we saw a wave", "snow on the peak and a trail", "the old things " * 12]
WIDTH, LONGEST = 32, 12


def own(folder, layer):
    """Return the vectors by the rule written out, each text alone."""
    checkpoint = load_checkpoint(str(folder), FEATURE_EXTRACTION)
    vectors = []
    for text in TEXTS:
        encoded = checkpoint.tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.inference_mode():
            first = checkpoint.model(**encoded).last_hidden_state[0, 0]
        raw = torch.tanh(layer[2]["linear.weight"] @ first + layer[2]["linear.bias"])
        vectors.append((raw / raw.norm()).numpy())
    return np.stack(vectors)


def test_a_teachers_vectors_and_a_torch_row_follow_the_folder(tiny_teacher, tmp_path):
    layer = dense(WIDTH, 24)
    folder = make_folder(
        tmp_path / "model", old_pooling("cls"), layer, ("Normalize", {}, {}), encoder=tiny_teacher, longest=LONGEST
    )
    expected = own(folder, layer)
    teacher = load_checkpoint(str(folder), FEATURE_EXTRACTION)
    head = teacher_head(str(folder), pooling="mean")
    rows = add_teacher_vectors(TEXTS, teacher, head, max_length=64, cache_dir=tmp_path / "cache", progress=silent)
    np.testing.assert_allclose(np.array(rows[TEACHER_VECTORS]), expected, atol=1e-5)
    # Arrow's other lists have int32 offsets, which 2^31 numbers overflow.
    assert rows.data.schema.field(TEACHER_VECTORS).type == pyarrow.list_(pyarrow.float32(), 24)
    assert head.width(WIDTH) == 24
    command = {"folder": str(folder), "precision": "fp32", "runner": "torch-cpu", "threads": 1, "max_length": None}
    command |= {"task": "feature-extraction"}
    runner = open_runner(command)
    assert runner.outputs == ("last_hidden_state", "sentence_embedding")
    found = runner.run(runner.tokenizer.encode(TEXTS))["sentence_embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
