"""A classifier behind LitServe, with onnxruntime and tokenizers, after LitServe's own examples.

python litserve_onnx.py --bundle BUNDLE --port 8000 --threads 2 --batch 8
"""

import argparse
import json
from pathlib import Path

import litserve
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

ATTRIBUTES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class Classifier(litserve.LitAPI):
    def __init__(self, folder: str, file: str, threads: int, **settings: float) -> None:
        super().__init__(**settings)
        self.folder, self.file, self.threads = Path(folder), file, threads

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(
            self.folder / "onnx" / self.file, options, providers=["CPUExecutionProvider"]
        )
        self.names = [node.name for node in self.session.get_inputs()]
        labels = json.loads((self.folder / "config.json").read_text())["id2label"]
        self.labels = [labels[str(number)] for number in range(len(labels))]
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(512)
        self.tokenizer.enable_padding()

    def decode_request(self, request: dict) -> str:
        return request["inputs"]

    def batch(self, texts: list[str]) -> list[str]:
        return texts

    def unbatch(self, output: list) -> list:
        return output

    def predict(self, texts: str | list[str]) -> list:
        single = isinstance(texts, str)
        encodings = self.tokenizer.encode_batch([texts] if single else texts)
        feeds = {name: np.array([getattr(one, ATTRIBUTES[name]) for one in encodings]) for name in self.names}
        logits = self.session.run(["logits"], feeds)[0]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (powers / powers.sum(axis=1, keepdims=True)).tolist()
        return scores[0] if single else scores

    def encode_response(self, scores: list[float]) -> list[dict]:
        found = [{"label": label, "score": score} for label, score in zip(self.labels, scores, strict=True)]
        return sorted(found, key=lambda entry: -entry["score"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--file", default="model.onnx")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    api = Classifier(
        arguments.bundle,
        arguments.file,
        arguments.threads,
        max_batch_size=arguments.batch,
        batch_timeout=0.005 if arguments.batch > 1 else 0.0,
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, healthcheck_path="/health/ready")
    server.run(
        host="127.0.0.1", port=arguments.port, num_api_servers=1, generate_client_file=False, log_level="warning"
    )
