"""Hold a bundle's answers to questions against the pipeline of transformers 4; transformers 5 has none.

python tests/interop/question_answering.py make FOLDER       here: random models, their bundles, and cases
python tests/interop/question_answering.py answer FOLDER     in an environment with transformers 4.57 and torch
python tests/interop/question_answering.py compare FOLDER    here again
"""

import itertools
import json
import sys
from pathlib import Path

QUESTIONS = ["Where did Ada live?", "is 東京 good? 🙂", "who"]
CASES = [
    {},
    {"top_k": 3},
    {"top_k": 4, "align_to_words": False, "max_answer_len": 4},
    {"handle_impossible_answer": True},
    {"handle_impossible_answer": True, "top_k": 5},
    {"doc_stride": 5, "max_seq_len": 42, "top_k": 2},
]
# An exported graph multiplies in another order than torch; answers add up over windows. Measured: 1.9e-6.
TOLERANCE = 1e-5


def make(folder):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.serve.tasks import models

    folder.mkdir(parents=True, exist_ok=True)

    contexts = [
        *(text for text in models.TEXTS if text.strip()),
        "Ada Lovelace lived in London. " * 12,
        "the good film was long, " * 20 + "東京 🙂 cafe\u0301.",
    ]
    for name, tokenizer in models.TOKENIZERS.items():
        own = tokenizer()
        model = models.build("question-answering", own)
        checkpoint = folder / name.replace(" ", "-")
        model.save_pretrained(checkpoint / "checkpoint")
        own.save_pretrained(checkpoint / "checkpoint")
        models.export(model, own, checkpoint / "bundle", "question-answering")
    cases = [
        {"question": question, "context": context, "parameters": parameters}
        for context, question, parameters in itertools.product(contexts, QUESTIONS, CASES)
    ]
    (folder / "cases.json").write_text(json.dumps(cases))


def answer(folder):
    import transformers

    if not transformers.__version__.startswith("4."):
        sys.exit(f"this is transformers {transformers.__version__}; the pipeline is in transformers 4")
    answers = {}
    for checkpoint in sorted(folder.glob("*/checkpoint")):
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval()
        ask = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer)
        cases = json.loads((folder / "cases.json").read_text())
        answers[checkpoint.parent.name] = [
            ask(question=case["question"], context=case["context"], **case["parameters"]) for case in cases
        ]
    (folder / "answers.json").write_text(json.dumps(answers))


def compare(folder):
    from potstill.serve import Encoder

    worst, count = 0.0, 0
    cases = json.loads((folder / "cases.json").read_text())
    for name, answers in json.loads((folder / "answers.json").read_text()).items():
        encoder = Encoder(folder / name / "bundle", threads=1)
        for case, theirs in zip(cases, answers, strict=True):
            ours = encoder.predict((case["question"], case["context"]), parameters=case["parameters"])
            ours = ours if isinstance(ours, list) else [ours]
            # The pipeline fills up with spans that cannot be, of the score 0; ours gives fewer answers then.
            theirs = [one for one in (theirs if isinstance(theirs, list) else [theirs]) if one["score"] > 0]
            ours = [one for one in ours if one["score"] > 0]
            for one, other in zip(ours, theirs, strict=True):
                assert {**one, "score": 0} == {**other, "score": 0}, (name, case, ours, theirs)
                worst = max(worst, abs(one["score"] - other["score"]))
            count += 1
    assert worst <= TOLERANCE, worst
    print(f"{count} cases answered as by transformers 4; scores differ by {worst:.1e} at most")


if __name__ == "__main__":
    {"make": make, "answer": answer, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
