"""Small real tokenizers of each kind, and checkpoints around them with the files that transformers 4 wrote."""

import json
import random
from functools import cache

import numpy as np
import torch
import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE, Unigram, WordPiece

LONGEST = 40
BRACKETS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ANGLES = {
    "bos": "<s>",
    "pad": "<pad>",
    "eos": "</s>",
    "unk": "<unk>",
    "mask": "<mask>",
    "cls": "<s>",
    "sep": "</s>",
}
WORDS = """
the a film was not good bad very it is and of in fine windows hello world naïve café x2 50 1,234 don't Straße 中文 日本
İstanbul fine film half walking talked unbelievable Ångström
""".split()  # noqa: SIM905
# Alone and in pairs: white space at the ends, emoji, ligatures, full-width digits, marks, special tokens as text.
TEXTS = (
    "hello world",
    "Hello, World! It's GOOD.",
    " leading",
    "trailing \n",
    "\t both  ends \u3000",
    "two   spaces",
    "",
    " ",
    "ﬁne ½ ﬁlm",
    "Windows™",
    "x²",
    "５０",
    "naïve café Ångström",
    "cafe\u0301",
    "Straße İstanbul",
    "中文日本 film",
    "🙂 👍🏽 film",
    "it\u200bis\u00adgood",
    "the [MASK] film <mask> [SEP] </s>",
    "unbelievable " * 30,
    "▁ ##ing Ġ",
)
PAIRS = tuple(zip(TEXTS, TEXTS[7:] + TEXTS[:7], strict=True))


def corpus():
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=9)) for _ in range(300)]


@cache
def charsmap():
    """Return sentencepiece's own table of NFKC, as every model of theirs carries it."""
    return sentencepiece_model().normalizer_spec.precompiled_charsmap


def train_sentencepiece(**settings):
    """Return the bytes of a sentencepiece model."""
    import io

    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=stream,
        vocab_size=110,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return stream.getvalue()


def sentencepiece_model(**settings):
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.ParseFromString(train_sentencepiece(**settings))
    return model


def bert_template(special, *, second=1):
    return processors.TemplateProcessing(
        single=f"{special['cls']}:0 $A:0 {special['sep']}:0",
        pair=f"{special['cls']}:0 $A:0 {special['sep']}:0 $B:{second} {special['sep']}:{second}",
        special_tokens=[(special["cls"], 2), (special["sep"], 3)],
    )


def word_piece(*, lowercase=True):
    special = list(BRACKETS.values())
    training, tokenizer = Tokenizer(WordPiece(unk_token="[UNK]")), Tokenizer(WordPiece(unk_token="[UNK]"))
    for one in (training, tokenizer):
        one.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        one.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Given in order, for the trainer numbers what it finds as a hash table lists it, otherwise in every process.
    inner = sorted({"##" + one for line in corpus() for one in training.normalizer.normalize_str(line)})
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special + inner, show_progress=False)
    training.train_from_iterator(corpus(), trainer)
    tokenizer.model = WordPiece(training.get_vocab(), unk_token="[UNK]")
    tokenizer.add_special_tokens(special)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = bert_template(BRACKETS)
    return tokenizer


def byte_pairs():
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram(*, precompiled, fairseq=False):
    """Return a Unigram tokenizer as transformers 4 converted those of DeBERTa-v3, or with XLM-R's special tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>"] if fairseq else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    unknown = special.index("<unk>" if fairseq else "[UNK]")
    pieces = [(one.piece, one.score) for one in sentencepiece_model().pieces][3:]
    tokenizer = Tokenizer(Unigram([(token, 0.0) for token in special] + pieces, unk_id=unknown))
    steps = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if precompiled:
        steps.insert(1, normalizers.Precompiled(charsmap()))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True) if fairseq else "[MASK]"])
    tokenizer.post_processor = bert_template(BRACKETS)
    if fairseq:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return tokenizer


def write_tokenizer(folder, tokenizer, kind, special, **config):
    """Write what transformers 4 wrote beside a tokenizer of the class `kind`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder()
    named = {f"{name}_token": text for name, text in special.items()}
    content = {
        "added_tokens_decoder": {
            str(number): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for number, token in added.items()
        },
        "clean_up_tokenization_spaces": True,
        "model_max_length": LONGEST,
        "tokenizer_class": kind,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(content | named | config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
    "max_position_embeddings": LONGEST,
}
AFTER_PADDING = SIZES | {"max_position_embeddings": LONGEST + 2, "pad_token_id": 1}
FAMILIES = {
    "Bert": SIZES,
    "Electra": SIZES | {"embedding_size": 16},
    "DistilBert": {
        "dim": 16,
        "n_layers": 1,
        "n_heads": 2,
        "hidden_dim": 32,
        "initializer_range": 0.3,
        "max_position_embeddings": LONGEST,
    },
    "Albert": SIZES | {"embedding_size": 16},
    "MPNet": AFTER_PADDING,
    "Roberta": AFTER_PADDING | {"type_vocab_size": 1},
    "XLMRoberta": AFTER_PADDING | {"type_vocab_size": 1},
    "Camembert": AFTER_PADDING | {"type_vocab_size": 1},
    "DebertaV2": SIZES
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 16,
    },
}


def write_model(folder, family, *, head="ForSequenceClassification", seed=0, config=None, **settings):
    """Write a random model, and change keys of its config.json by `config`, of which None ones are taken out."""
    torch.manual_seed(seed)
    kind = getattr(transformers, f"{family}Config")
    model = getattr(transformers, f"{family}{head}")(kind(**FAMILIES[family] | settings)).eval()
    model.save_pretrained(folder)
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | (config or {})
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
    return model


KINDS = {
    "WordPiece as BertTokenizer": ("Bert", word_piece, "BertTokenizer", BRACKETS),
    "cased WordPiece as BertTokenizer, which lower-cases": (
        "Bert",
        lambda: word_piece(lowercase=False),
        "BertTokenizer",
        BRACKETS,
    ),
    "WordPiece as RobertaTokenizer": ("Roberta", word_piece, "RobertaTokenizer", BRACKETS),
    "WordPiece as PreTrainedTokenizerFast": ("Bert", word_piece, "PreTrainedTokenizerFast", BRACKETS),
    "WordPiece as DistilBertTokenizer": ("DistilBert", word_piece, "DistilBertTokenizerFast", BRACKETS),
    "WordPiece as DistilBertTokenizer beside a BERT": ("Bert", word_piece, "DistilBertTokenizer", BRACKETS),
    "WordPiece as ElectraTokenizer": ("Electra", word_piece, "ElectraTokenizerFast", BRACKETS),
    "WordPiece as MPNetTokenizer": ("MPNet", word_piece, "MPNetTokenizer", BRACKETS),
    "WordPiece as DebertaV2Tokenizer": ("DebertaV2", word_piece, "DebertaV2Tokenizer", BRACKETS),
    "byte-level BPE as RobertaTokenizer": ("Roberta", byte_pairs, "RobertaTokenizer", ANGLES),
    "byte-level BPE as BertTokenizer": ("Bert", byte_pairs, "BertTokenizer", ANGLES),
    "Unigram with Precompiled as DebertaV2Tokenizer": (
        "DebertaV2",
        lambda: unigram(precompiled=True),
        "DebertaV2Tokenizer",
        BRACKETS,
    ),
    "Unigram with Precompiled as XLMRobertaTokenizer": (
        "XLMRoberta",
        lambda: unigram(precompiled=True, fairseq=True),
        "XLMRobertaTokenizer",
        ANGLES,
    ),
    "Unigram with Metaspace alone as AlbertTokenizer": (
        "Albert",
        lambda: unigram(precompiled=False),
        "AlbertTokenizer",
        BRACKETS,
    ),
    "Unigram with Metaspace alone, nameless": (
        "Bert",
        lambda: unigram(precompiled=False),
        "PreTrainedTokenizerFast",
        BRACKETS,
    ),
}


def write_checkpoint(folder, name):
    """Write one of `KINDS`: a model with as many rows as its tokenizer has ids."""
    family, make, kind, special = KINDS[name]
    tokenizer = make()
    write_tokenizer(folder, tokenizer, kind, special)
    write_model(folder, family, vocab_size=tokenizer.get_vocab_size())
    return folder


def reference(folder, *, max_length=LONGEST):
    """Return the checkpoint's file, loaded by the tokenizers library alone, which cuts as every command does."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return tokenizer


def columns(encodings):
    return {
        "input_ids": [encoding.ids for encoding in encodings],
        "token_type_ids": [encoding.type_ids for encoding in encodings],
    }


def unpadded(batch, mask):
    """Return the cells of each row that are no padding, after a look whether they come first."""
    rows = []
    for cells, flags in zip(np.asarray(batch), np.asarray(mask), strict=True):
        assert flags[: flags.sum()].all()
        rows.append(cells[: flags.sum()].tolist())
    return rows
