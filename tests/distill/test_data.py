"""What is made ready before training: augmented texts, the teacher's vectors, the choice of layers."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from potstill.checkpoint import load_checkpoint
from potstill.checkpoint.model import SentenceHead
from potstill.config import build_recipe
from potstill.data import load_examples
from potstill.distill import distill, init_student, run
from potstill.distill.augmentation import alter, augment, propose
from potstill.distill.teacher_embeddings import add_teacher_vectors, load_single_texts
from potstill.errors import CheckpointError, RecipeError
from potstill.progress import silent
from potstill.tasks import FEATURE_EXTRACTION, FILL_MASK, TEXT_CLASSIFICATION
from tests.checkpoint.made import byte_pairs
from tests.distill.families import build


@pytest.fixture(scope="module")
def masked(tmp_path_factory, tiny_teacher):
    """The tiny teacher with a masked-LM head that prefers one word to all others."""
    folder = tmp_path_factory.mktemp("masked")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(tiny_teacher), AutoTokenizer.from_pretrained(tiny_teacher)
    with torch.no_grad():
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("snow")] = 50.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(teacher, data, **settings):
    values = {"teacher": {"model": str(teacher)}, "data": {"name": str(data)}, "max_length": 32}
    return build_recipe(values, overrides=list(settings.items()))


class TestAugmentation:
    def test_only_whole_words_are_replaced_and_by_what_the_model_proposes(self, masked):
        proposer = load_checkpoint(str(masked), FILL_MASK)
        words = ["we", "saw", "snowclimbing", "things"]
        places, proposals = propose(words, proposer.model, proposer.tokenizer)
        assert places == [0, 1, 3]
        assert all(candidates[0] == "snow" and len(candidates) <= 15 for candidates in proposals)
        assert all(word not in candidates for word, candidates in zip(["we", "saw", "things"], proposals, strict=True))

    def test_a_vocabulary_that_marks_words_by_the_space_before_proposes_words_without_the_mark(self):
        """RoBERTa writes Ġgood for a new word and good for the rest of one; once, Ġgood stood in the copies."""
        made = byte_pairs()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, mask_token="<mask>", pad_token="<pad>")
        vocabulary = made.get_vocab()
        marked = sorted((token for token in vocabulary if token[0] == "Ġ" and token[1:].isalpha()), key=len)
        whole = [token for token in marked if tokenizer.tokenize(f"a {token[1:]}")[-1] == token][-4:]
        inner = next(token for token in vocabulary if token.isalpha() and "Ġ" not in token and len(token) > 2)
        model = build("Roberta", vocab_size=len(made.get_vocab()))
        with torch.no_grad():
            model.lm_head.bias[vocabulary[inner]] = 100.0
            for token in whole:
                model.lm_head.bias[vocabulary[token]] = 50.0
        words = [token[1:] for token in whole]
        places, proposals = propose(["a", *words], model, tokenizer)
        assert set(places) >= {1, 2, 3, 4}
        for place, candidates in zip(places, proposals, strict=True):
            there = ["a", *words][place]
            assert set(candidates[:3]) <= set(words) - {there}
            assert inner not in candidates
            assert not any("Ġ" in word for word in candidates)

    def test_a_share_of_0_changes_nothing_and_of_1_every_replaceable_word(self, masked):
        proposer = load_checkpoint(str(masked), FILL_MASK)
        for share, changed in ((0.0, 0), (1.0, 3)):
            generator = np.random.default_rng(0)
            (copy,) = alter(
                "we saw snowclimbing things",
                proposer.model,
                proposer.tokenizer,
                copies=1,
                share=share,
                generator=generator,
            )
            pairs = zip(["we", "saw", "snowclimbing", "things"], copy.split(), strict=True)
            assert sum(one != other for one, other in pairs) == changed

    def test_copies_follow_their_texts_without_a_label_the_same_for_the_same_seed(
        self, masked, tiny_data, tiny_teacher
    ):
        examples = load_examples(str(tiny_data), split="validation", task=TEXT_CLASSIFICATION, limit=4)
        keys = {"distill.method": "tinybert", "distill.augment": 2, "distill.augment_model": str(masked)}
        one, two = (augment(examples, recipe(tiny_teacher, tiny_data, **keys), copies=2, progress=silent) for _ in "ab")
        assert one.texts == two.texts
        assert one.texts[:4] == examples.texts
        assert len(one.texts) == len(one.labels) == 12
        assert one.labels[:4].tolist() == examples.labels.tolist()
        assert one.labels[4:].tolist() == [-1] * 8
        assert one.num_unlabelled == 8

    def test_a_student_learns_from_augmented_texts(self, masked, tiny_data, tiny_teacher, tmp_path):
        keys = {"distill.method": "tinybert", "distill.augment": 1, "distill.augment_model": str(masked)}
        settings = recipe(tiny_teacher, tiny_data, **keys, **{"distill.max_steps": 2, "student.layers": 2})
        assert distill(settings, tmp_path / "student")["data"]["train_examples"] == 384

    def test_without_a_model_to_propose_words_it_is_refused(self, tiny_data, tiny_teacher, tmp_path):
        settings = recipe(tiny_teacher, tiny_data, **{"distill.method": "tinybert", "distill.augment": 1})
        with pytest.raises(RecipeError, match="augment_model"):
            distill(settings, tmp_path / "student")


class TestTeacherVectors:
    def test_they_are_the_teachers_computed_once(self, tiny_teacher, tiny_data, tmp_path, monkeypatch):
        from potstill.distill import teacher_embeddings

        teacher = load_checkpoint(str(tiny_teacher), FEATURE_EXTRACTION)
        texts = load_single_texts(str(tiny_data), split="validation", text_columns=None, limit=5)
        made = {"head": SentenceHead(["mean"]), "max_length": 32, "cache_dir": tmp_path, "progress": silent}
        rows = add_teacher_vectors(texts, teacher, **made)
        monkeypatch.setattr(teacher_embeddings, "embed_texts", None)  # a second computation would call it
        again = add_teacher_vectors(texts, teacher, **made)
        assert rows["teacher_vectors"] == again["teacher_vectors"]
        encoded = teacher.tokenizer(texts[3], return_tensors="pt")
        with torch.inference_mode():
            by_hand = teacher.model(**encoded).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(rows["teacher_vectors"][3], by_hand, atol=1e-5)

    def test_both_texts_of_a_pair_count_and_each_once(self, tmp_path):
        rows = [("a b", "c d"), ("c d", "e f")]
        lines = [json.dumps({"sentence1": one, "sentence2": other, "score": 1.0}) for one, other in rows]
        (tmp_path / "train.jsonl").write_text("\n".join(lines))
        assert load_single_texts(str(tmp_path), split="train", text_columns=None, limit=None) == ["a b", "c d", "e f"]

    def test_pairs_with_scores_are_judged_by_their_rank_correlation(self, tiny_teacher, tmp_path):
        words = ["wave tide", "sail shore", "peak ridge", "snow climb"]
        for split in ("train", "validation"):
            lines = [
                json.dumps({"sentence1": one, "sentence2": other, "score": float(abs(i - j))})
                for i, one in enumerate(words)
                for j, other in enumerate(words)
            ]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        keys = {"task": "feature-extraction", "distill.method": "embedding", "distill.max_steps": 2}
        settings = recipe(tiny_teacher, tmp_path, **keys, **{"distill.allow_weak_teacher": True, "student.layers": 2})
        report = distill(settings, tmp_path / "student")
        assert report["metric"] == "spearman"
        assert report["floor"]["spearman"] == 0.0


class TestBestOf:
    def test_the_layers_whose_student_starts_best_are_kept(self, tiny_teacher, tiny_data, tmp_path, monkeypatch):
        seen = []
        original = run.best_layers

        def spy(*args, **kwargs):
            found = original(*args, **kwargs)
            seen.append(found)
            return found

        monkeypatch.setattr(run, "best_layers", spy)
        settings = recipe(
            tiny_teacher, tiny_data, **{"student.layers": 2, "student.best_of": True, "distill.max_steps": 1}
        )
        report = distill(settings, tmp_path / "student")
        ((layers, scores),) = seen
        assert report["student"]["layers_kept"] == layers
        assert scores[tuple(layers)] == max(scores.values()) < 0
        assert len(scores) >= 3

    def test_init_has_no_data_to_choose_on(self, tiny_teacher, tiny_data, tmp_path):
        settings = recipe(tiny_teacher, tiny_data, **{"student.layers": 2, "student.best_of": True})
        with pytest.raises(RecipeError, match="name the layers"):
            init_student(settings, tmp_path / "student")


def test_an_encoder_that_lost_its_weights_is_not_taken_for_one_with_a_new_head(tiny_teacher, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(tiny_teacher)
    weights = {name: value for name, value in model.state_dict().items() if "layer.1." not in name}
    model.save_pretrained(tmp_path / "torn", state_dict=weights)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "torn")
    with pytest.raises(CheckpointError, match=r"layer\.1\."):
        load_checkpoint(str(tmp_path / "torn"), FILL_MASK, new_head={})
