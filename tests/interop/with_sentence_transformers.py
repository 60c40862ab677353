"""Load the embedding bundle with sentence-transformers' ONNX backend and compare: python ... DIR."""

from importlib.metadata import version

from compare import compare
from sentence_transformers import SentenceTransformer


def ask(case, file_name):
    bundle = str(case.bundle)
    model = SentenceTransformer(bundle, backend="onnx", device="cpu", model_kwargs={"file_name": file_name})
    return [{"sentence_embedding": model.encode(batch["texts"])} for batch in case.batches]


compare(f"sentence-transformers {version('sentence-transformers')}", ask, tasks=("feature-extraction",))
