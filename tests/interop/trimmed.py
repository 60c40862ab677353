"""Trim checkpoints of every kind of tokenizer, and have other tools read what comes out.

    python tests/interop/trimmed.py make DIR DATA TEXTS CHECKPOINT ...
    python tests/interop/trimmed.py read DIR                 # in an environment of other tools
    node with_trimmed.mjs DIR

`make` trims each checkpoint to the training split of DATA, writes it to DIR/NAME, and checks it on the texts of TEXTS,
a data folder of another domain, on emoji, and on Chinese and Arabic characters: nothing is unknown that was not, and
where all pieces stay the answers are equal to 1e-6. DIR/NAME.json holds texts and ids, which the others compare.
"""

import json
import sys
from pathlib import Path

LENGTH = 64  # of the texts that models answer, in tokens
EMOJI = [chr(number) for number in (*range(0x1F300, 0x1F650), *range(0x1F680, 0x1F700), *range(0x1F900, 0x1FA00))]
SEQUENCES = ["👩‍👩‍👧", "🏳️‍🌈", "🇨🇭", "👍🏽", "❤️", "1️⃣"]
CHINESE = [chr(number) for number in range(0x4E00, 0xA000)]
ARABIC = [chr(number) for number in range(0x600, 0x700)]
LINES = [" ".join(some[start : start + 40]) for some in (EMOJI, CHINESE, ARABIC) for start in range(0, len(some), 40)]
LINES += ["".join(CHINESE[start : start + 20]) for start in range(0, len(CHINESE), 400)]


def make(out: Path, data: str, beside: str, checkpoints: list[str]) -> bool:
    import torch
    import transformers
    from tokenizers import Tokenizer

    from potstill.checkpoint import load_tokenizer
    from potstill.data import load_texts
    from potstill.distill import trim
    from potstill.tasks import FILL_MASK

    fits = []
    running = load_texts(beside, split="validation", task=FILL_MASK, limit=400)
    for name in checkpoints:
        target = out / Path(name).name
        record = trim(name, target, data=data, other_data=beside, overwrite=True)["vocabulary"]
        whole = load_tokenizer(name).backend_tokenizer
        smaller = Tokenizer.from_file(str(target / "tokenizer.json"))
        for tokenizer in (whole, smaller):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        texts = [*running, *load_texts(data, split="validation", task=FILL_MASK, limit=400), *SEQUENCES, *LINES]
        before, after = whole.encode_batch(texts), smaller.encode_batch(texts)
        unknown = load_tokenizer(name).unk_token
        lost = sum(
            new.tokens.count(unknown) > old.tokens.count(unknown) for old, new in zip(before, after, strict=True)
        )
        same = [place for place, old in enumerate(before) if old.tokens == after[place].tokens]
        stay = [
            place for place, old in enumerate(before) if all(smaller.token_to_id(one) is not None for one in old.tokens)
        ]
        kind = json.loads((target / "config.json").read_text())["architectures"][0]
        models = [getattr(transformers, kind).from_pretrained(folder).eval() for folder in (name, target)]
        worst = 0.0
        with torch.inference_mode():
            for place in same[:200]:
                answers = [
                    model(input_ids=torch.tensor([encoding.ids[:LENGTH]]))[0]
                    for model, encoding in zip(models, (before[place], after[place]), strict=True)
                ]
                worst = max(worst, float((answers[0] - answers[1]).abs().max()))
        fits.append(lost == 0 and set(stay) <= set(same) and len(stay) > 20 and worst <= 1e-6)
        content = {"texts": texts, "ids": [encoding.ids for encoding in after], "pooled": record is not None}
        (out / f"{target.name}.json").write_text(json.dumps(content), encoding="utf-8")
        print(
            f"{name}: {record['rows']:,} of {record['rows_before']:,} pieces; {len(texts):,} texts, {lost} with a new "
            f"{unknown}; {len(stay)} keep all pieces and {len(same)} read the same, answers within {worst:.1e} "
            f"{'ok' if fits[-1] else 'MISMATCH'}",
            flush=True,
        )
    return all(fits)


def read(out: Path) -> bool:
    import transformers
    from transformers import AutoTokenizer

    fits = []
    for file in sorted(out.glob("*.json")):
        content, folder = json.loads(file.read_text(encoding="utf-8")), str(out / file.stem)
        readers = {f"transformers {transformers.__version__}": AutoTokenizer.from_pretrained(folder)}
        if (out / file.stem / "modules.json").is_file():
            import sentence_transformers

            loaded = sentence_transformers.SentenceTransformer(folder, device="cpu")
            assert loaded.encode(["a text"]).shape[0] == 1
            readers[f"sentence-transformers {sentence_transformers.__version__}"] = loaded.tokenizer
        for who, tokenizer in readers.items():
            # Each alone: a batch would be cut and padded as the model wants it.
            found = [tokenizer(text, truncation=False, verbose=False)["input_ids"] for text in content["texts"]]
            wrong = sum(ids != expected for ids, expected in zip(found, content["ids"], strict=True))
            fits.append(wrong == 0)
            verdict = "MISMATCH" if wrong else "ok"
            print(f"{who}: {file.stem}: {wrong} of {len(found):,} texts read otherwise {verdict}")
    return bool(fits) and all(fits)


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    if command == "make":
        sys.path.insert(0, str(Path(__file__).parents[2]))
        sys.exit(not make(Path(folder), rest[0], rest[1], rest[2:]))
    sys.exit(not read(Path(folder)))
