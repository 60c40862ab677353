"""Trim checkpoints of every kind of tokenizer, and have other tools read what comes out.

    python tests/interop/trimmed.py make DIR [DATA TEXTS [CHECKPOINT ...]]
    python tests/interop/trimmed.py read DIR                 # here, and in an environment of other tools
    node with_trimmed.mjs DIR

`make` trims each checkpoint to the training split of DATA, writes it to DIR/NAME, and checks it on the texts of TEXTS,
a data set of another domain, on emoji, and on Chinese and Arabic characters: nothing is unknown that was not, and
where all pieces stay the answers are equal to 1e-6. DIR/NAME.json holds texts and potstill's ids, with which the others
compare theirs. Beside the checkpoints named there are four of random weights, whose tokenizers the libraries that
people use for it train on TEXTS: WordPiece, byte-level BPE, and Unigram as XLM-R and as DeBERTa-v3 have it.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"})

PIECES = 2000  # of each trained tokenizer
LENGTH = 64  # of the texts that models answer, in tokens
EMOJI = [chr(number) for number in (*range(0x1F300, 0x1F650), *range(0x1F680, 0x1F700), *range(0x1F900, 0x1FA00))]
SEQUENCES = ["👩‍👩‍👧", "🏳️‍🌈", "🇨🇭", "👍🏽", "❤️", "1️⃣"]
CHINESE = [chr(number) for number in range(0x4E00, 0xA000)]
ARABIC = [chr(number) for number in range(0x600, 0x700)]
LINES = [" ".join(some[start : start + 40]) for some in (EMOJI, CHINESE, ARABIC) for start in range(0, len(some), 40)]
LINES += ["".join(CHINESE[start : start + 20]) for start in range(0, len(CHINESE), 400)]

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.07,  # what BERT's 0.02 is at 768 units
    "max_position_embeddings": LENGTH + 2,
}
# As microsoft/deberta-v3-base has them; without type ids a model has no second kind of text.
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 32,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}


def train_checkpoints(folder: Path, texts: list[str]) -> list[str]:
    """Write a random model for each kind of tokenizer, and return their folders."""
    import sentencepiece
    import torch
    import transformers
    from tokenizers import ByteLevelBPETokenizer, processors

    from potstill.distill.teacher import train_tokenizer

    # With some characters of other scripts, so that there are known and unknown ones.
    texts = [*texts[::4], *LINES[::64], *SEQUENCES]

    def word_pieces(place: Path) -> None:
        train_tokenizer(texts, vocab_size=PIECES, max_length=LENGTH).save_pretrained(place)

    def byte_pairs(place: Path) -> None:
        tokenizer = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer.train_from_iterator(texts, vocab_size=PIECES, special_tokens=special, show_progress=False)
        own = tokenizer._tokenizer
        own.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        transformers.RobertaTokenizer(tokenizer_object=own, model_max_length=LENGTH).save_pretrained(place)

    def unigrams(file: str, **settings: Any) -> Callable[[Path], None]:
        def write(place: Path) -> None:
            model = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=PIECES,
                character_coverage=1.0,
                minloglevel=2,
                **settings,
            )
            (place / file).write_bytes(model.getvalue())

        return write

    brackets = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    brackets |= {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    kinds = {
        "wordpiece": ("Bert", "ForSequenceClassification", word_pieces, {}),
        "byte-bpe": ("Roberta", "ForMaskedLM", byte_pairs, {"type_vocab_size": 1}),
        "unigram-xlmr": ("XLMRoberta", "Model", unigrams("sentencepiece.bpe.model"), {"type_vocab_size": 1}),
        "unigram-deberta": ("DebertaV2", "ForSequenceClassification", unigrams("spm.model", **brackets), DEBERTA),
    }
    for name, (family, head, write_tokenizer, settings) in kinds.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        write_tokenizer(place)
        torch.manual_seed(0)
        # XLM-R has two ids and DeBERTa one that sentencepiece does not count; a few rows more do no harm.
        config = getattr(transformers, f"{family}Config")(vocab_size=PIECES + 8, **SIZES, **settings)
        getattr(transformers, f"{family}{head}")(config).save_pretrained(place)
    return [str(folder / name) for name in kinds]


def make(out: Path, data: str, beside: str, checkpoints: list[str]) -> bool:
    import torch
    import transformers

    from potstill.checkpoint import load_tokenizer, save_tokenizer
    from potstill.data import choose_splits, load_texts
    from potstill.distill import trim
    from potstill.tasks import FILL_MASK

    running = load_texts(beside, split="validation", task=FILL_MASK, limit=400)
    own_texts = load_texts(data, split=choose_splits(data, train="train", evaluation="validation")[1], task=FILL_MASK)
    texts = [*running, *own_texts[:400], *SEQUENCES, *LINES]
    torch.set_num_threads(1)  # small products, and cores that others may use, too
    fits = []
    for name in [*checkpoints, *train_checkpoints(out / "whole", load_texts(beside, split="train", task=FILL_MASK))]:
        target = out / Path(name).name
        record = trim(name, target, data=data, other_data=beside, overwrite=True)["vocabulary"]
        whole, smaller = load_tokenizer(name), load_tokenizer(target)
        before, after = (one.backend_tokenizer.encode_batch(texts) for one in (whole, smaller))
        unknown = whole.unk_token
        lost = sum(
            new.tokens.count(unknown) > old.tokens.count(unknown) for old, new in zip(before, after, strict=True)
        )
        same = [place for place, old in enumerate(before) if old.tokens == after[place].tokens]
        pieces = smaller.get_vocab()
        stay = [place for place, old in enumerate(before) if all(one in pieces for one in old.tokens)]
        kind = getattr(transformers, json.loads((target / "config.json").read_text())["architectures"][0])
        models = [kind.from_pretrained(folder).eval() for folder in (name, target)]
        # What a masked-LM head says of the pieces that stay.
        rows = [whole.convert_tokens_to_ids(piece) for piece in sorted(pieces, key=pieces.__getitem__)]
        worst = 0.0
        with torch.inference_mode():
            for place in same[:200]:
                answers = [
                    model(input_ids=torch.tensor([encoding.ids[:LENGTH]]))[0]
                    for model, encoding in zip(models, (before[place], after[place]), strict=True)
                ]
                if kind.__name__.endswith("ForMaskedLM"):
                    answers[0] = answers[0][..., rows]
                worst = max(worst, float((answers[0] - answers[1]).abs().max()))
        fits.append(lost == 0 and set(stay) <= set(same) and len(stay) > 20 and worst <= 1e-6)
        # As it was, for a tool that reads some texts in its own way: that it still does is no fault of the trimming.
        earlier = out / "before" / target.name
        earlier.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(name) / "config.json", earlier)
        save_tokenizer(whole, earlier)
        content = {"texts": texts, "ids": [one.ids for one in after], "ids_before": [one.ids for one in before]}
        (out / f"{target.name}.json").write_text(json.dumps(content), encoding="utf-8")
        print(
            f"{target.name}: {record['rows']:,} of {record['rows_before']:,} rows stay; of {len(texts):,} texts {lost} "
            f"with a new {unknown}, {len(stay)} keep all pieces, {len(same)} are read the same and answered within "
            f"{worst:.1e} {'ok' if fits[-1] else 'MISMATCH'}",
            flush=True,
        )
    return all(fits)


def read(out: Path) -> bool:
    import tokenizers
    import transformers

    fits = []
    for file in sorted(out.glob("*.json")):
        content, folder = json.loads(file.read_text(encoding="utf-8")), str(out / file.stem)
        plain = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        found = {f"tokenizers {tokenizers.__version__}": [plain.encode(text).ids for text in content["texts"]]}
        readers = {f"transformers {transformers.__version__}": transformers.AutoTokenizer.from_pretrained(folder)}
        try:
            import sentence_transformers
        except ModuleNotFoundError:
            pass  # it is in the environment of other tools alone
        else:
            loaded = sentence_transformers.SentenceTransformer(folder, device="cpu")
            assert loaded.encode(["a text"]).shape[0] == 1
            readers[f"sentence-transformers {sentence_transformers.__version__}"] = loaded.tokenizer
        for who, tokenizer in readers.items():
            # Each alone: a batch would be cut and padded as the model wants it.
            found[who] = [tokenizer(text, truncation=False, verbose=False)["input_ids"] for text in content["texts"]]
        for who, all_ids in found.items():
            wrong = sum(ids != expected for ids, expected in zip(all_ids, content["ids"], strict=True))
            fits.append(wrong == 0)
            verdict = "MISMATCH" if wrong else "ok"
            print(f"{who}: {file.stem}: {wrong} of {len(all_ids):,} texts read otherwise {verdict}", flush=True)
    return bool(fits) and all(fits)


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    if command == "make":
        root = Path(__file__).parents[2]
        sys.path.insert(0, str(root))
        data, beside, *named = rest or [str(root / "examples" / "data" / "reviews.csv"), "python-docs"]
        sys.exit(not make(Path(folder), data, beside, named))
    sys.exit(not read(Path(folder)))
