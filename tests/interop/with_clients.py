"""Serve the bundles of all five tasks and ask them with other people's clients, unmodified.

python with_clients.py DIR [POTSTILL], where make_bundles.py wrote DIR and POTSTILL is the command of that name.

huggingface_hub's InferenceClient, OpenAI's client and tritonclient.http get their answers from one server. What they
get is held against the outputs that make_bundles.py wrote, and against one another where a task only reads those.
"""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openai
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from huggingface_hub import AsyncInferenceClient, InferenceClient
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

TASKS = ("text-classification", "token-classification", "question-answering", "fill-mask", "feature-extraction")
CLASSIFIER, TAGGER, ASKED, MASKED, EMBEDDER = TASKS
# The same file and the same onnxruntime, but batches of other sizes; measured 1e-6.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
MASK_ID = 4  # <mask> in make_bundles.py's tokenizer, which has RoBERTa's numbers
KEY = "a-key-that-nobody-guesses"


class Expected:
    """What make_bundles.py wrote of one task: texts, ids, and the outputs of the fp32 file."""

    def __init__(self, folder: Path, task: str) -> None:
        batch = json.loads((folder / f"{task}.json").read_text(encoding="utf-8"))["batches"][0]
        self.texts: list[Any] = batch["texts"]
        self.inputs = {name: np.array(values, dtype=np.int64) for name, values in batch["inputs"].items()}
        self.outputs = {name: np.float32(values) for name, values in batch["outputs"]["fp32"].items()}
        manifest = json.loads((folder / task / "potstill.json").read_text(encoding="utf-8"))
        self.labels: list[str] = manifest["labels"]
        self.served: list[str] = manifest["outputs"]


@contextmanager
def served(potstill: str, folder: Path) -> Iterator[str]:
    """Give the address of a server of all bundles, with a key."""
    keys = folder / "keys"
    keys.write_text(KEY + "\n", encoding="utf-8")
    bundles = [f"{task}={folder / task}" for task in TASKS]
    command = [potstill, "serve", *bundles, "--port", "0", "--threads", "1", "--api-key-file", str(keys)]
    process = subprocess.Popen([*command, "--drain-seconds", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            sys.exit(f"the server did not start: {''.join(lines)}")
        yield found[0]
    finally:
        process.terminate()
        process.stderr.read()
        assert process.wait(timeout=30) == 0, f"the server ended with {process.returncode}"
        keys.unlink()


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return probabilities along the last axis."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def refused(call: Callable[[], object], error: type[Exception], says: str) -> None:
    """Check that a call is refused in words that the client passes on; OpenAI's keeps them in `body`."""
    try:
        call()
    except error as found:
        heard = f"{found} {getattr(found, 'body', '')}"
    else:
        raise AssertionError(f"a call was answered that should be refused: {says}")
    assert says in heard, f"{error.__name__} came without the words {says!r}"


class Hub:
    """huggingface_hub's InferenceClient."""

    name = f"huggingface_hub {version('huggingface_hub')}"

    def __init__(self, url: str) -> None:
        self._url = url

    def _of(self, task: str) -> InferenceClient:
        return InferenceClient(f"{self._url}/models/{task}", token=KEY)

    def check(self, expected: dict[str, Expected]) -> None:
        """Ask all five tasks."""
        self._check_classes(expected[CLASSIFIER])
        self._check_entities(expected[TAGGER])
        self._check_answers(expected[ASKED])
        self._check_vectors(expected[EMBEDDER])
        self._check_words(expected[MASKED])
        asyncio.run(self._check_async(expected[CLASSIFIER]))

    def _check_classes(self, case: Expected) -> None:
        # The first model answers at the root.
        for client in (InferenceClient(self._url, token=KEY), self._of(CLASSIFIER)):
            for text, scores in zip(case.texts, softmax(case.outputs["logits"]), strict=True):
                found = client.text_classification(text)
                assert [each.label for each in found] == [case.labels[at] for at in np.argsort(-scores, kind="stable")]
                np.testing.assert_allclose([each.score for each in found], np.sort(scores)[::-1], **CLOSE)
        assert len(client.text_classification(case.texts[0], top_k=1)) == 1
        refused(lambda: client.text_classification("x" * 100_000), Exception, "413")

    def _check_entities(self, case: Expected) -> None:
        for text, row, logits in zip(case.texts, case.inputs["attention_mask"], case.outputs["logits"], strict=True):
            scores = softmax(logits[row == 1])[1:-1]  # without [CLS] and [SEP]
            client = self._of(TAGGER)
            found = client.token_classification(text, aggregation_strategy="none", ignore_labels=[])
            assert [each.entity for each in found] == [case.labels[at] for at in scores.argmax(axis=-1)]
            np.testing.assert_allclose([each.score for each in found], scores.max(axis=-1), **CLOSE)
            for each in client.token_classification(text, aggregation_strategy="simple"):
                assert each.entity_group == "SEA"
                assert 0 <= each.start < each.end <= len(text)

    def _check_answers(self, case: Expected) -> None:
        types, outputs = case.inputs["token_type_ids"], case.outputs
        for row, (question, context) in enumerate(case.texts):
            found = self._of(ASKED).question_answering(question=question, context=context, align_to_words=False)
            assert found.answer == context[found.start : found.end]
            # The context's tokens, without the [SEP] behind it; [CLS] stands for "no answer" and takes its share.
            places = [0, *np.flatnonzero(types[row])[:-1]]
            starts, ends = (softmax(outputs[f"{edge}_logits"][row, places])[1:] for edge in ("start", "end"))
            pairs = np.triu(np.outer(starts, ends)) - np.triu(np.outer(starts, ends), 15)
            np.testing.assert_allclose(found.score, pairs.max(), **CLOSE)

    def _check_vectors(self, case: Expected) -> None:
        for text, vector in zip(case.texts, case.outputs["sentence_embedding"], strict=True):
            found = self._of(EMBEDDER).feature_extraction(text)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found.squeeze(), vector, **CLOSE)
        raw = self._of(EMBEDDER).feature_extraction(case.texts[0], normalize=True, truncate=True)
        np.testing.assert_allclose(np.linalg.norm(raw), 1, **CLOSE)

    def _check_words(self, case: Expected) -> None:
        client, text = self._of(MASKED), case.texts[-1]
        place = np.flatnonzero(case.inputs["input_ids"][-1] == MASK_ID)[0]
        scores = softmax(case.outputs["logits"][-1, place])
        best = np.argsort(-scores)[:20]
        found = client.fill_mask(text, top_k=20)
        assert [each.token for each in found] == best.tolist()
        np.testing.assert_allclose([each.score for each in found], scores[best], **CLOSE)
        # A token may be a part of a character; a word can be asked for by its name.
        word = next(each for each in found if each.token_str.strip().isalpha())
        assert word.sequence == text.replace("<mask>", word.token_str)
        chosen = client.fill_mask(text, targets=[word.token_str], top_k=1)
        assert (chosen[0].token, chosen[0].sequence) == (word.token, word.sequence)
        np.testing.assert_allclose(chosen[0].score, word.score, **CLOSE)

    async def _check_async(self, case: Expected) -> None:
        client = AsyncInferenceClient(self._url, token=KEY)
        found = await asyncio.gather(*(client.text_classification(text) for text in case.texts))
        best = softmax(case.outputs["logits"]).max(axis=-1)
        np.testing.assert_allclose([each[0].score for each in found], best, **CLOSE)


class OpenAI:
    """OpenAI's client."""

    name = f"openai {version('openai')}"

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1"
        self._client = openai.OpenAI(base_url=self._url, api_key=KEY, max_retries=0)

    def check(self, expected: dict[str, Expected]) -> None:
        """Ask for embeddings in every way, and for the models."""
        case, embeddings = expected[EMBEDDER], self._client.embeddings
        vectors = case.outputs["sentence_embedding"]
        # Its own default is base64, which it takes apart itself.
        for given in ({}, {"encoding_format": "float"}, {"user": "somebody"}):
            found = embeddings.create(model=EMBEDDER, input=case.texts, **given)
            assert [each.index for each in found.data] == list(range(len(case.texts)))
            np.testing.assert_allclose([each.embedding for each in found.data], vectors, **CLOSE)
        assert (found.model, found.usage.prompt_tokens) == (EMBEDDER, int(case.inputs["attention_mask"].sum()))
        assert found.usage.total_tokens == found.usage.prompt_tokens
        raw = embeddings.create(model=EMBEDDER, input=case.texts[0], encoding_format="base64").data[0].embedding
        assert isinstance(raw, str)
        one = embeddings.create(model=EMBEDDER, input=case.texts[0], dimensions=16).data[0].embedding
        short = vectors[0][:16]
        np.testing.assert_allclose(one, short / np.linalg.norm(short), **CLOSE)
        self._check_models()
        asyncio.run(self._check_async(case.texts, vectors))
        refused(lambda: embeddings.create(model="none", input="a"), openai.NotFoundError, "no model")
        refused(lambda: embeddings.create(model=EMBEDDER, input=[]), openai.UnprocessableEntityError, "empty")
        ids = lambda: embeddings.create(model=EMBEDDER, input=[[1, 2, 3]])  # noqa: E731  # as LangChain sends them
        refused(ids, openai.UnprocessableEntityError, "check_embedding_ctx_length=False")
        wrong = openai.OpenAI(base_url=self._url, api_key="another-key", max_retries=0)
        refused(lambda: wrong.embeddings.create(model=EMBEDDER, input="a"), openai.AuthenticationError, "Bearer")

    def _check_models(self) -> None:
        assert {model.id for model in self._client.models.list()} == set(TASKS)
        assert self._client.models.retrieve(EMBEDDER).object == "model"

    async def _check_async(self, texts: list[str], vectors: NDArray[np.float32]) -> None:
        async with openai.AsyncOpenAI(base_url=self._url, api_key=KEY) as client:
            found = await asyncio.gather(*(client.embeddings.create(model=EMBEDDER, input=text) for text in texts))
        np.testing.assert_allclose([each.data[0].embedding for each in found], vectors, **CLOSE)


class Triton:
    """NVIDIA's client of the Open Inference Protocol."""

    name = f"tritonclient {version('tritonclient')}"

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")
        self._client = triton.InferenceServerClient(self._address)
        self._key = {"Authorization": f"Bearer {KEY}"}

    def check(self, expected: dict[str, Expected]) -> None:
        """Ask for everything that the protocol has."""
        self._check_facts(expected)
        for task, case in expected.items():
            for binary in (True, False):
                self._check_ids(task, case, binary=binary)
        self._check_texts(expected)
        self._check_refusals()
        asyncio.run(self._check_async(expected[CLASSIFIER]))
        self._client.close()

    def _infer(self, task: str, inputs: list[triton.InferInput], **more: Any) -> triton.InferResult:
        # It writes the length of its JSON into the headers that it is given.
        return self._client.infer(task, inputs, headers=dict(self._key), **more)

    def _check_facts(self, expected: dict[str, Expected]) -> None:
        client = self._client
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.get_server_metadata(headers=self._key)["extensions"] == ["binary_tensor_data", "parameters"]
        for task, case in expected.items():
            assert client.is_model_ready(task, headers=self._key)
            assert client.is_model_ready(task, "1", headers=self._key)
            about = client.get_model_metadata(task, headers=self._key)
            assert (about["name"], about["versions"], about["platform"]) == (task, ["1"], "onnx_onnxv1")
            assert set(case.served) <= {output["name"] for output in about["outputs"]}
            assert set(case.inputs) <= {tensor["name"] for tensor in about["inputs"]}
        assert not client.is_model_ready("none", headers=self._key)

    def _check_ids(self, task: str, case: Expected, *, binary: bool) -> None:
        for datatype, kind in (("INT64", np.int64), ("INT32", np.int32)):
            inputs = [
                triton.InferInput(name, values.shape, datatype).set_data_from_numpy(
                    values.astype(kind), binary_data=binary
                )
                for name, values in case.inputs.items()
            ]
            outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in case.served]
            found = self._infer(task, inputs, outputs=outputs, request_id="seven")
            assert found.get_response()["id"] == "seven"
            for name in case.served:
                values = found.as_numpy(name)
                assert values.dtype == np.float32
                mask = case.inputs["attention_mask"]
                seen = mask == 1 if values.shape[:2] == mask.shape else ...
                assert values.shape == case.outputs[name].shape
                np.testing.assert_allclose(values[seen], case.outputs[name][seen], **CLOSE)
        # Without outputs asked for, all come.
        assert {output["name"] for output in self._infer(task, inputs).get_response()["outputs"]} == set(case.served)

    def _check_texts(self, expected: dict[str, Expected]) -> None:
        for task, names in {ASKED: ("question", "context"), TAGGER: ("text",), EMBEDDER: ("text",)}.items():
            case = expected[task]
            columns = zip(*case.texts, strict=True) if len(names) == 2 else [case.texts]
            inputs = [_texts(name, list(column)) for name, column in zip(names, columns, strict=True)]
            found = self._infer(task, inputs)
            if task == EMBEDDER:
                np.testing.assert_allclose(found.as_numpy("embedding"), case.outputs["sentence_embedding"], **CLOSE)
            else:
                answers = [json.loads(row) for row in found.as_numpy("answers")]
                hub = InferenceClient(f"http://{self._address}/models/{task}", token=KEY)
                assert len(answers) == len(case.texts)
                if task == ASKED:
                    question, context = case.texts[0]
                    other = hub.question_answering(question=question, context=context)
                    assert answers[0]["answer"] == other.answer
                    np.testing.assert_allclose(answers[0]["score"], other.score, **CLOSE)
                else:
                    other = hub.token_classification(case.texts[0])
                    assert [each["word"] for each in answers[0]] == [each.word for each in other]
        case = expected[CLASSIFIER]
        scores = softmax(case.outputs["logits"])
        for binary in (True, False):
            for shape in ([len(case.texts)], [len(case.texts), 1]):
                found = self._infer(CLASSIFIER, [_texts("text", case.texts, shape=shape, binary=binary)])
                assert found.as_numpy("label").tolist() == [case.labels[at].encode() for at in scores.argmax(axis=-1)]
                np.testing.assert_allclose(found.as_numpy("score"), scores.max(axis=-1), **CLOSE)
        pair = [_texts("text", ["snow"]), _texts("text_pair", ["rock"])]
        answers = self._infer(CLASSIFIER, pair, parameters={"top_k": 1}, timeout=5_000_000).as_numpy("answers")
        assert len(json.loads(answers[0])) == 1

    def _check_refusals(self) -> None:
        refused(lambda: self._infer("none", [_texts("text", ["a"])]), InferenceServerException, "404")
        refused(lambda: self._infer(CLASSIFIER, [_texts("txt", ["a"])]), InferenceServerException, "it takes text")
        big = triton.InferInput("input_ids", [1, 1], "INT64").set_data_from_numpy(np.array([[10**9]]))
        refused(lambda: self._infer(CLASSIFIER, [big]), InferenceServerException, "422")
        bare = lambda: self._client.infer(CLASSIFIER, [_texts("text", ["a"])])  # noqa: E731
        refused(bare, InferenceServerException, "401")

    async def _check_async(self, case: Expected) -> None:
        client = triton_aio.InferenceServerClient(self._address)
        try:
            found = await asyncio.gather(
                *(client.infer(CLASSIFIER, [_texts("text", [text])], headers=dict(self._key)) for text in case.texts)
            )
        finally:
            await client.close()
        best = softmax(case.outputs["logits"]).max(axis=-1)
        np.testing.assert_allclose([each.as_numpy("score")[0] for each in found], best, **CLOSE)


def _texts(name: str, values: list[str], *, shape: list[int] | None = None, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, shape or [len(values)], "BYTES")
    data = np.array([value.encode() for value in values], dtype=np.object_).reshape(tensor.shape())
    return tensor.set_data_from_numpy(data, binary_data=binary)


def main(folder: Path, potstill: str) -> None:
    """Ask with every client, and tell."""
    expected = {task: Expected(folder, task) for task in TASKS}
    with served(potstill, folder) as url:
        for client in (Hub(url), OpenAI(url), Triton(url)):
            client.check(expected)
            print(f"{client.name}: ok")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "potstill")
