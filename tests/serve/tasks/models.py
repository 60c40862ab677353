"""Random models of two families with their tokenizers, exported as potstill exports them, beside transformers'."""

import json
import math
from collections import Counter
from pathlib import Path

import onnx
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, PreTrainedTokenizerFast, RobertaConfig

from potstill.bundle import MODEL_FILES, Manifest, ModelRecord, record_files, write_manifest
from potstill.checkpoint import accepted_inputs
from potstill.checkpoint.model import simple_head
from potstill.distill.teacher import train_tokenizer
from potstill.export.graph import build_graph
from potstill.serve import Encoder

LONGEST = 48
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
CLASSES = {
    "text-classification": ("AutoModelForSequenceClassification", ["logits"]),
    "token-classification": ("AutoModelForTokenClassification", ["logits"]),
    "question-answering": ("AutoModelForQuestionAnswering", ["start_logits", "end_logits"]),
    "fill-mask": ("AutoModelForMaskedLM", ["logits"]),
    "feature-extraction": ("AutoModel", ["last_hidden_state"]),
}
TEXTS = [
    "Ada Lovelace lived in London, near St. James's Square.",
    "",
    " ",
    "\t \n",
    "  two  spaces   and trailing ",
    "cafe\u0301 na\u0131\u0308ve e\u0301e\u0301e\u0301 nfd",
    "🙂 film 🏳️‍🌈 👩‍👩‍👧 good",
    "東京は日本の首都です。 Tokyo 中文",
    "x" * 150,
    "antidisestablishmentarianism " * 3,
    "[CLS] typed [SEP] special [UNK] tokens",
    "שלום world مرحبا",
    "\u202eevil\u202c \u200bzero\u200dwidth\x00nul",
    "\ufdfa \ufb01n \u2167 NFKC",
    "Don't stop! I'm they've we're; it's n't.",
    "good film " * 60,
]
_CORPUS = [
    "Ada Lovelace lived in London and wrote about the engine of Charles Babbage in a house near the square",
    "the good film was not very bad but it had a long story about the sea and the mountains in the north",
    "two spaces and trailing words don't stop they've seen antidisestablishmentarianism in cafe naive",
    "東京 は 日本 の 首都 中 文 Tokyo 🙂 typed special tokens world",
]


def word_piece():
    """A lowercasing WordPiece tokenizer as BERT's."""
    tokenizer = train_tokenizer(_CORPUS, vocab_size=200, max_length=LONGEST).backend_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_pairs():
    """A byte-level tokenizer as RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],
    )


def unigram():
    """A SentencePiece-like tokenizer as XLM-RoBERTa's."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = Counter("▁" + word for line in _CORPUS for word in line.split())
    # A trained one would be another in every process, and with it which answers nearly tie: each half of a word is a
    # piece, so is each character, and the more frequent is the likelier.
    pieces = Counter()
    for word, count in words.items():
        for piece in {*word, word, word[: len(word) // 2], word[len(word) // 2 :]} - {""}:
            pieces[piece] += count
    scores = sorted((piece, math.log(count / pieces.total())) for piece, count in pieces.items())
    tokenizer = Tokenizer(models.Unigram([*((one, 0.0) for one in special), *scores], unk_id=special.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],
    )


TOKENIZERS = {"word pieces": word_piece, "byte pairs": byte_pairs, "unigram": unigram}


def build(task, tokenizer, *, labels=TAGS, problem_type=None):
    """Return a random model whose answers differ from token to token."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "pad_token_id": tokenizer.pad_token_id,
    }
    is_bert = "token_type_ids" in tokenizer.model_input_names
    config = (BertConfig if is_bert else RobertaConfig)(**sizes, max_position_embeddings=LONGEST + 2)
    if task in {"text-classification", "token-classification"}:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}
        config.problem_type = problem_type
    torch.manual_seed(0)
    model = getattr(transformers, CLASSES[task][0]).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(std=0.2))
        if task == "token-classification":
            # No label shall win everywhere.
            model.classifier.bias.zero_()
            model.classifier.weight.mul_(4)
    return model


def export(model, tokenizer, folder: Path, task, *, pooling=None) -> Path:
    """Write a bundle by potstill's exporter, without the checks, which take long."""
    (folder / "onnx").mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    outputs = CLASSES[task][1]
    inputs = [name for name in accepted_inputs(model) if name in tokenizer.model_input_names]
    head = simple_head(pooling.mode, normalize=pooling.normalize) if pooling else None
    graph = build_graph(model, inputs=inputs, outputs=outputs, attention="fused", head=head)
    onnx.save(graph, str(folder / MODEL_FILES["fp32"]))
    labelled = task in {"text-classification", "token-classification"}
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)] if labelled else []
    kind = model.config.problem_type
    if task == "text-classification" and kind is None and len(labels) == 1:
        kind = "regression"  # as potstill.export does
    manifest = Manifest(
        task=task,
        labels=labels,
        max_length=LONGEST,
        pad_token_id=tokenizer.pad_token_id,
        inputs=inputs,
        outputs=[*outputs, *(["sentence_embedding"] if pooling else [])],
        parameters=1,
        models={"fp32": ModelRecord(file=MODEL_FILES["fp32"])},
        files=record_files(folder),
        problem_type=kind if task == "text-classification" else None,
        pooling=pooling,
    )
    write_manifest(folder, manifest)
    return folder


def load(task, name, folder, **settings):
    """Return transformers' model, its tokenizer, and the encoder of its bundle."""
    pooling = settings.pop("pooling", None)
    tokenizer = TOKENIZERS[name]()
    model = build(task, tokenizer, **settings)
    bundle = export(
        model, tokenizer, folder / f"{task}-{name.replace(' ', '-')}-{json.dumps(settings)[:9]}", task, pooling=pooling
    )
    return model, tokenizer, Encoder(bundle, threads=1)
