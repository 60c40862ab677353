"""Load every bundle with optimum-onnx and compare: python with_optimum.py DIR, where make_bundles.py wrote."""

from importlib.metadata import version

import numpy as np
from compare import columns, compare
from optimum.onnxruntime import (
    ORTModelForFeatureExtraction,
    ORTModelForMaskedLM,
    ORTModelForQuestionAnswering,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)
from transformers import AutoTokenizer

CLASSES = {
    "feature-extraction": ORTModelForFeatureExtraction,
    "fill-mask": ORTModelForMaskedLM,
    "question-answering": ORTModelForQuestionAnswering,
    "text-classification": ORTModelForSequenceClassification,
    "token-classification": ORTModelForTokenClassification,
}


def ask(case, file_name):
    bundle, ORTModel = case.bundle, CLASSES[case.task]
    tokenizer = AutoTokenizer.from_pretrained(bundle)
    model = ORTModel.from_pretrained(bundle, subfolder="onnx", file_name=file_name)
    answers = []
    for batch in case.batches:
        texts = columns(batch["texts"])
        inputs = tokenizer(*texts, padding=True, truncation=True, return_tensors="np")
        for name, ids in batch["inputs"].items():
            np.testing.assert_array_equal(inputs[name], ids, err_msg=f"{case.task}: {name}")
        answers.append(model(**inputs))
    return answers


compare(f"optimum-onnx {version('optimum-onnx')}", ask)
