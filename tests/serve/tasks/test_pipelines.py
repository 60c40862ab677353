"""Exported bundles against transformers' own pipelines on the same random models, with three tokenizers each."""

import warnings

import numpy as np
import pytest
import torch
from transformers import pipeline

from potstill.bundle import Pooling

from .models import TEXTS, TOKENIZERS, load

# Of numbers up to 1, and of the number itself beyond. Measured: 2e-6, because an exported graph multiplies in another
# order than torch does; from torch's own logits (test_scores_from_torch...) it is 1.1e-7.
TOLERANCE = 1e-5
# An empty second text is no second text to transformers where a pair comes alone, and is one in a list of pairs; here
# it always is one, as in training.
PAIRS = [(first, second) for first in TEXTS[::2] for second in TEXTS[1::5] if second]


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def name(request):
    return request.param


def close(ours, theirs):
    """Compare answers: numbers to the tolerance, all else exactly, keys and order included."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), (ours, theirs)
        for key in theirs:
            close(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), (ours, theirs)
        for one, other in zip(ours, theirs, strict=True):
            close(one, other)
    elif isinstance(theirs, float | np.floating):
        assert ours == pytest.approx(float(theirs), abs=TOLERANCE, rel=TOLERANCE), (ours, theirs)
        assert type(ours) is float
    else:
        assert ours == theirs, (ours, theirs)
        assert type(ours) is type(theirs)


def close_but_for_ties(ours, theirs):
    """Compare words for masks: those whose scores are nearly one may stand in either order, or be cut off."""
    if isinstance(theirs[0], list):
        for one, other in zip(ours, theirs, strict=True):
            close_but_for_ties(one, other)
        return
    close([answer["score"] for answer in ours], [answer["score"] for answer in theirs])
    by_token = {answer["token"]: answer for answer in ours}
    assert len(by_token) == len(ours)
    for answer in theirs:
        if answer["token"] in by_token:
            close(by_token[answer["token"]], answer)
        else:
            assert answer["score"] <= theirs[-1]["score"] * (1 + TOLERANCE), answer


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("word pieces", None),
        ("byte pairs", "multi_label_classification"),
        ("unigram", "regression"),
    ],
)
def test_classifiers(name, problem, tmp_path):
    model, tokenizer, encoder = load("text-classification", name, tmp_path, problem_type=problem)
    theirs = pipeline("text-classification", model=model, tokenizer=tokenizer)
    inputs = [*TEXTS, *({"text": one, "text_pair": two} for one, two in PAIRS)]
    for settings in ({}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}, {"top_k": 2}):
        chosen = inputs if not settings else inputs[::7]
        for text in chosen:
            want = theirs(text, **{"top_k": None, "truncation": True} | settings)
            close(encoder.predict(text, parameters=settings), want)


def test_a_single_output_is_no_regression_where_the_checkpoint_does_not_say_so(tmp_path):
    model, tokenizer, encoder = load("text-classification", "word pieces", tmp_path, labels=["amount"])
    theirs = pipeline("text-classification", model=model, tokenizer=tokenizer)
    for text in TEXTS:
        close(encoder.predict(text), theirs(text, top_k=None, truncation=True))


def test_scores_from_torchs_own_logits_are_equal_in_float32(token_models):
    model, tokenizer, encoder = token_models("word pieces")
    theirs = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="average")
    prepared = encoder.prepare(TEXTS, {"aggregation_strategy": "average"})
    outputs = []
    for row in prepared.rows:
        with torch.no_grad():
            outputs.append({"logits": model(**{k: torch.tensor(v[None]) for k, v in row.items()}).logits[0].numpy()})
    for ours, want in zip(prepared.decode(outputs), theirs(TEXTS), strict=True):
        assert [entity["score"] for entity in ours] == pytest.approx([float(e["score"]) for e in want], abs=3e-7)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_entities_and_their_places(name, strategy, token_models):
    model, tokenizer, encoder = token_models(name)
    theirs = pipeline("token-classification", model=model, tokenizer=tokenizer)
    found = 0
    for ignored in (["O"], ["PER", "B-LOC"]):
        parameters = {"aggregation_strategy": strategy, "ignore_labels": ignored}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a tokenizer does not know words
            want = [theirs(text, **parameters) for text in TEXTS]
        close(encoder.predict(TEXTS, parameters=parameters), want)
        found += sum(map(len, want))
    assert found > 25


@pytest.fixture(scope="module")
def token_models(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = load("token-classification", name, tmp_path_factory.mktemp("models"))
        return made[name]

    return get


def test_words_for_masks(name, tmp_path):
    model, tokenizer, encoder = load("fill-mask", name, tmp_path)
    theirs = pipeline("fill-mask", model=model, tokenizer=tokenizer)
    mask = tokenizer.mask_token
    texts = [
        f"{mask}",
        f"the good {mask} was not very bad.",
        f"{mask} film, and don't {mask} it !",
        f"🙂 東京 {mask} e\u0301 {mask}{mask}",
        f"{mask} " + "good film " * 60,
        f"{tokenizer.pad_token} the {mask} {tokenizer.cls_token} film",
        f"  {mask}  two  spaces ?",
    ]
    for text in texts:
        for settings in ({}, {"top_k": 1}, {"top_k": 37}, {"targets": ["good", "film", "good"]}):
            want = theirs(text, tokenizer_kwargs={"truncation": True}, **settings)
            close_but_for_ties(encoder.predict(text, parameters=settings), want)
    targets = ["good", "film", "Babbage's", "zzz", "東京", tokenizer.unk_token]
    want = theirs(texts[2], targets=targets, top_k=3)
    close_but_for_ties(encoder.predict(texts[2], parameters={"targets": targets, "top_k": 3}), want)


@pytest.mark.parametrize(("mode", "normalize"), [("mean", True), ("cls", False)])
def test_vectors(mode, normalize, tmp_path):
    name, pooling = "word pieces", Pooling(mode=mode, normalize=normalize)
    model, tokenizer, encoder = load("feature-extraction", name, tmp_path, pooling=pooling)
    theirs = pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    pool = {"mean": lambda v: v.mean(axis=0), "cls": lambda v: v[0]}[mode]
    for text in TEXTS:
        plain = pool(np.array(theirs(text, tokenize_kwargs={"truncation": True})[0]))
        unit = plain / np.linalg.norm(plain)
        close(encoder.predict(text), (unit if normalize else plain).tolist())
        close(encoder.predict(text, parameters={"normalize": False}), plain.tolist())
        close(encoder.predict(text, parameters={"normalize": True}), unit.tolist())
        short = plain[:5] / np.linalg.norm(plain[:5]) if normalize else plain[:5]
        close(encoder.predict(text, parameters={"dimensions": 5}), short.tolist())


def test_vectors_without_pooling_in_the_graph_are_means(tmp_path):
    model, tokenizer, encoder = load("feature-extraction", "byte pairs", tmp_path)
    for text in TEXTS:
        for side in ("right", "left"):
            tokenizer.truncation_side = side
            with torch.no_grad():
                states = model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0]
            vector = encoder.predict(text, parameters={"truncation_direction": side})
            close(vector, states.mean(dim=0).tolist())
