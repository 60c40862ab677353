"""Tiny bundles: one whose logits really depend on ids, types and mask, in fp32 and in real dynamic int8, and one of
every other task, whose answers to a token depend on the token, its type, its place and the whole text."""

import functools
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
    "a",
    "good",
    "bad",
    "film",
    "book",
    "the",
    "was",
    "not",
    "very",
    "it",
    "is",
    "warm",
    "up",
    "x",
    "##x",
    "##s",
    "##ly",
    ",",
    ".",
    "!",
    "?",
    "1",
    "##1",
    *"abcdefghijklmnopqrstuvwyz",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrtuvwyz"),
    "é",
    "ש",
    "##ל",
    "##ו",
    "##ם",
    "م",
    "🙂",
    "中",
]
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


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
# What `task_bundle` makes: name -> manifest's fields, and the width of each output.
TASKS = {
    "ner": ({"task": "token-classification", "labels": TAGS}, {"logits": len(TAGS)}),
    "qa": ({"task": "question-answering", "labels": []}, {"start_logits": None, "end_logits": None}),
    "mask": ({"task": "fill-mask", "labels": []}, {"logits": len(VOCABULARY)}),
    "vector": (
        {"task": "feature-extraction", "labels": [], "pooling": {"mode": "mean", "normalize": True}},
        {"last_hidden_state": HIDDEN, "sentence_embedding": None},
    ),
    "tokens": ({"task": "feature-extraction", "labels": []}, {"last_hidden_state": HIDDEN}),
    "multi": ({"problem_type": "multi_label_classification"}, {"logits": len(LABELS)}),
    "regression": ({"problem_type": "regression", "labels": ["amount"]}, {"logits": 1}),
}


def write_token_graph(file: Path, outputs: dict[str, int | None], *, per_text: bool = False) -> None:
    """Embed words, types and places, add the mean under the mask to each, and answer every token (or text)."""
    draw = np.random.default_rng(11)
    weights = {
        "words": draw.normal(size=(len(VOCABULARY), HIDDEN)),
        "types": draw.normal(size=(2, HIDDEN)),
        "places": draw.normal(size=(256, HIDDEN)),
    }
    constants = {"last": [2], "tokens": [1], "zero": 0, "one": 1, "two": 2, "all": [-1]}
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type"]),
        # Places are counted under the mask, so padding on the left changes nothing either.
        helper.make_node("CumSum", ["attention_mask", "one"], ["place"]),
        helper.make_node("Gather", ["places", "place"], ["placed"]),
        helper.make_node("Sum", ["word", "type", "placed"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["embedded", "wide_mask"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "tokens"], ["total"], keepdims=1),
        helper.make_node("ReduceSum", ["wide_mask", "tokens"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Add", ["embedded", "mean"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["states"]),
    ]
    for name, width in outputs.items():
        if name == "last_hidden_state":
            nodes.append(helper.make_node("Identity", ["states"], [name]))
        elif name == "sentence_embedding":
            nodes += [
                helper.make_node("Mul", ["states", "wide_mask"], ["seen_states"]),
                helper.make_node("ReduceSum", ["seen_states", "tokens"], ["states_total"], keepdims=0),
                helper.make_node("LpNormalization", ["states_total"], [name], axis=-1, p=2),
            ]
        else:
            weights[f"{name}_head"] = draw.normal(size=(HIDDEN, width or 1)) * 3
            head = "mean" if per_text else "states"
            nodes.append(helper.make_node("MatMul", [head, f"{name}_head"], [f"{name}_wide"]))
            narrow = "tokens" if per_text else "last"
            drop = helper.make_node("Squeeze", [f"{name}_wide", narrow], [name])
            nodes.append(drop if per_text or width is None else helper.make_node("Identity", [f"{name}_wide"], [name]))
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens_in"]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
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


@pytest.fixture(scope="session")
def task_bundle(tmp_path_factory):
    """Give a function that makes the bundle of one of TASKS, once."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("bundles") / f"{name}-onnx"
            (folder / "onnx").mkdir(parents=True)
            write_tokenizer(folder / "tokenizer.json")
            special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
            (folder / "tokenizer_config.json").write_text(json.dumps(special | {"model_max_length": MAX_LENGTH}))
            fields, outputs = TASKS[name]
            write_token_graph(folder / MODEL_FILES["fp32"], outputs, per_text="problem_type" in fields)
            models = {"fp32": ModelRecord(file=MODEL_FILES["fp32"])}
            seal(folder, outputs=list(outputs), models=models, **fields)
            made[name] = folder
        return made[name]

    return make


@pytest.fixture(scope="session")
def task_encoder(task_bundle):
    """Give a function that loads the bundle of one of TASKS, once."""
    return functools.cache(lambda name: Encoder(task_bundle(name), threads=1))


@pytest.fixture(scope="session")
def ner_dir(task_bundle):
    return task_bundle("ner")


@pytest.fixture(scope="session")
def qa_dir(task_bundle):
    return task_bundle("qa")


@pytest.fixture(scope="session")
def mask_dir(task_bundle):
    return task_bundle("mask")


@pytest.fixture(scope="session")
def vector_dir(task_bundle):
    return task_bundle("vector")


@pytest.fixture
def panicking_dir(own_bundle):
    """A bundle whose tokenizer panics on a text of many "a" and a "!"."""
    file = own_bundle / "tokenizer.json"
    content = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    file.write_text(json.dumps(content))
    seal(own_bundle)
    return own_bundle
