"""Two tiny bundles, a wide teacher and a narrow student, that really run in onnxruntime."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from potstill.bundle import MODEL_FILES, Manifest, ModelRecord, record_files, write_manifest
from potstill.data import Examples

LABELS = ["bad", "good"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(59))]
POSITIONS = 32


def write_tokenizer(file, words=WORDS):
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(file))


def write_graph(file, *, hidden, layers, seed, words=WORDS):
    """Mean of the embeddings under the mask, `layers` times a tanh layer, then logits."""
    draw = np.random.default_rng(seed)
    weights = {"words": draw.normal(size=(len(words), hidden)), "classify": draw.normal(size=(hidden, len(LABELS)))}
    weights |= {f"layer{n}": draw.normal(size=(hidden, hidden)) / np.sqrt(hidden) for n in range(layers)}
    node = helper.make_node
    nodes = [
        node("Gather", ["words", "input_ids"], ["embedded"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["wide"]),
        node("Mul", ["embedded", "wide"], ["hidden0"]),
    ]
    for number in range(layers):
        nodes.append(node("MatMul", [f"hidden{number}", f"layer{number}"], [f"mixed{number}"]))
        nodes.append(node("Tanh", [f"mixed{number}"], [f"hidden{number + 1}"]))
    nodes += [
        node("ReduceSum", [f"hidden{layers}", "tokens"], ["total"], keepdims=0),
        node("ReduceSum", ["wide", "tokens"], ["count"], keepdims=0),
        node("Div", ["total", "count"], ["mean"]),
        node("MatMul", ["mean", "classify"], ["logits"]),
    ]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    tensors += [numpy_helper.from_array(np.array([2]), "last"), numpy_helper.from_array(np.array([1]), "tokens")]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "t"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", len(LABELS)])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))
    return sum(value.size for value in weights.values())


def write_bundle(folder, *, hidden, layers, seed=0, words=WORDS, **changes):
    (folder / "onnx").mkdir(parents=True)
    write_tokenizer(folder / "tokenizer.json", words)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": POSITIONS}))
    parameters = write_graph(folder / MODEL_FILES["fp32"], hidden=hidden, layers=layers, seed=seed, words=words)
    # Another graph of the same shape plays the int8 file: the bench shall not care.
    write_graph(folder / MODEL_FILES["int8"], hidden=hidden, layers=layers, seed=seed + 1, words=words)
    quantize_dynamic(folder / MODEL_FILES["int8"], folder / MODEL_FILES["int8"], op_types_to_quantize=["MatMul"])
    fields = {
        "task": "text-classification",
        "labels": LABELS,
        "max_length": POSITIONS,
        "inputs": ["input_ids", "attention_mask"],
        "outputs": ["logits"],
        "parameters": parameters,
        "architecture": {"model_type": "tiny", "vocab_size": len(words), "max_position_embeddings": POSITIONS},
        "models": {
            "fp32": ModelRecord(file=MODEL_FILES["fp32"]),
            "int8": ModelRecord(file=MODEL_FILES["int8"], quantisation={"kind": "dynamic"}, batch_invariant=False),
        },
        "files": record_files(folder),
    }
    write_manifest(folder, Manifest.model_validate(fields | changes))
    return folder


def make_examples(count=200, *, highest=2, pairs=False):
    draw = np.random.default_rng(3)
    texts = [" ".join(draw.choice(WORDS[5:], size=draw.integers(1, 20))) for _ in range(count)]
    if pairs:
        texts = list(zip(texts, reversed(texts), strict=True))
    labels = draw.integers(highest, size=count)
    return Examples(
        name="made", split="validation", texts=texts, labels=labels, label_names=tuple(LABELS), sha256="0" * 64
    )


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "teacher", hidden=192, layers=6)


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "student", hidden=64, layers=2, seed=10)


@pytest.fixture(scope="session")
def examples():
    return make_examples()
