"""A tokenizer and graphs so small that their answers can be told by heart."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

from potstill.bundle import MODEL_FILES, FileRecord, Manifest, ModelRecord
from potstill.serve import BundleTokenizer, OnnxSession

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNKNOWN, FIRST, LAST, MASK = range(5)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-[]"
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "é", "ש", "中", "🙂", "##\u200d"]
INPUTS = ["input_ids", "attention_mask"]


def word_piece():
    """Return the tokenizer: one token per character."""
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", FIRST), ("[SEP]", LAST)],
    )
    return tokenizer


def bundle_tokenizer(folder, *, max_length=32, inputs=INPUTS, **fields):
    """Write the tokenizer into `folder` and load it as a bundle's."""
    word_piece().save(str(folder / "tokenizer.json"))
    record = ModelRecord(file=MODEL_FILES["fp32"])
    manifest = Manifest(
        task="text-classification",
        labels=["a"],
        max_length=max_length,
        inputs=list(inputs),
        outputs=["logits"],
        parameters=1,
        models={"fp32": record},
        files={record.file: FileRecord(sha256="0" * 64, size_bytes=0)},
        **fields,
    )
    return BundleTokenizer(folder, manifest)


def model(nodes, outputs, *, constants=(), inputs=INPUTS):
    """Return a graph of `nodes`; `outputs` are float tensors, `constants` named arrays."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def session(folder, graph, name="model.onnx"):
    """Write a graph and load it."""
    onnx.save(graph, folder / name)
    return OnnxSession(folder / name, threads=1, spinning=False)


def table(columns, *, seed=0):
    """Return what each token says, (tokens, columns)."""
    return np.random.default_rng(seed).normal(size=(len(VOCABULARY), columns)).astype(np.float32)


def tokenwise(values, output="logits"):
    """Return a graph that answers each token with its row of `values`."""
    node = helper.make_node("Gather", ["table", "input_ids"], [output])
    return model([node], [output], constants={"table": values})


def textwise(values, output="logits"):
    """Return a graph that answers each text with the mean of its tokens' rows of `values`."""
    return model(mean_nodes("table", output), [output], constants={"table": values, "one": [1], "two": [2]})


def mean_nodes(values, output):
    """Return the nodes that average rows of the constant `values` under the mask."""
    return [
        helper.make_node("Gather", [values, "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["wide", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], [output]),
    ]
