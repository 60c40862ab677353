"""A tiny bundle whose logits really depend on ids, types and mask, in fp32 and in real dynamic int8."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

from potstill.bundle import MODEL_FILES, Manifest, ModelRecord, record_files, write_manifest
from potstill.serve import Encoder

LABELS = ["negative", "neutral", "positive"]
MAX_LENGTH = 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *SPECIAL,
    "a", "good", "bad", "film", "book", "the", "was", "not", "very", "it", "is", "warm", "up", "x", "##x", "##s",
    "##ly", ",", ".", "!", "?", "1", "##1",
    *"abcdefghijklmnopqrstuvwyz",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrtuvwyz"),
    "é", "ש", "##ל", "##ו", "##ם", "م", "🙂", "中",
]  # fmt: skip
VOCABULARY = list(dict.fromkeys(WORDS))
HIDDEN = 16


def write_tokenizer(file: Path) -> None:
    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", VOCABULARY.index("[CLS]")), ("[SEP]", VOCABULARY.index("[SEP]"))],
    )
    # As a checkpoint is often saved: with settings that the bundle must override.
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(file))


def write_graph(file: Path) -> None:
    """Embed, average under the mask, mix, classify."""
    draw = np.random.default_rng(7)
    weights = {
        "words": draw.normal(size=(len(VOCABULARY), HIDDEN)),
        "types": draw.normal(size=(2, HIDDEN)),
        "mix": draw.normal(size=(HIDDEN, HIDDEN)),
        "classify": draw.normal(size=(HIDDEN, len(LABELS))),
    }
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type"]),
        helper.make_node("Add", ["word", "type"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["embedded", "wide_mask"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "tokens"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["wide_mask", "tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "mix"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "classify"], ["logits"]),
    ]
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens_in"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.array([2]), "last"), numpy_helper.from_array(np.array([1]), "tokens")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(file))


def seal(folder: Path, **changes) -> None:
    """Write the manifest over whatever lies in the folder."""
    fields = {
        "task": "text-classification",
        "labels": LABELS,
        "max_length": MAX_LENGTH,
        "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "outputs": ["logits"],
        "parameters": len(VOCABULARY) * HIDDEN,
        "models": {
            "fp32": ModelRecord(file=MODEL_FILES["fp32"], parity={"max_difference": 0.0}),
            "int8": ModelRecord(
                file=MODEL_FILES["int8"], quantisation={"kind": "dynamic"}, batch_invariant=False, parity={}
            ),
        },
        "files": record_files(folder),
        "source": {"name": "tiny"},
    }
    write_manifest(folder, Manifest.model_validate(fields | changes))


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "tiny-onnx"
    (folder / "onnx").mkdir(parents=True)
    write_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": MAX_LENGTH}))
    write_graph(folder / MODEL_FILES["fp32"])
    quantize_dynamic(folder / MODEL_FILES["fp32"], folder / MODEL_FILES["int8"], weight_type=QuantType.QInt8)
    seal(folder)
    return folder


@pytest.fixture
def own_bundle(bundle_dir, tmp_path):
    """Give a copy that a test may spoil."""
    return Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))


@pytest.fixture
def resealed(own_bundle):
    """Give a function that changes the manifest of a copy and returns the copy."""

    def change(**changes):
        seal(own_bundle, **changes)
        return own_bundle

    return change


@pytest.fixture(scope="session")
def encoder(bundle_dir):
    return Encoder(bundle_dir, threads=1)


@pytest.fixture(scope="session")
def int8_encoder(bundle_dir):
    return Encoder(bundle_dir, precision="int8", threads=1)
