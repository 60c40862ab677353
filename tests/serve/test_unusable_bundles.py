"""Row C8 of the faults: a bundle whose hashes are right and whose content no server can use is refused in one line."""

import hashlib
import json

import pytest

from potstill.errors import BundleError
from potstill.serve import Encoder
from tests.sealed import edit


def change_tokenizer(folder, change):
    """Change tokenizer.json and what the manifest says of it, as whoever made the bundle would."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    written = file.read_bytes()
    record = {"sha256": hashlib.sha256(written).hexdigest(), "size_bytes": len(written)}
    edit(folder, lambda manifest: manifest["files"].update({file.name: record}))


def refusal(folder):
    with pytest.raises(BundleError) as caught:
        Encoder(folder, threads=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [("max_length", 10**12, 2**20), ("max_length", 1e12, 2**20), ("pad_token_id", 10**30, 2**31 - 1)],
)
def test_c8_a_number_that_no_machine_can_serve(own_bundle, name, value, most):
    edit(own_bundle, lambda manifest: manifest.update({name: value}))
    assert refusal(own_bundle) == (
        f"{own_bundle}/potstill.json is not a valid manifest: {name}: input should be less than or equal to {most} "
        f"(it is {value})"
    )


def test_c8_an_empty_vocabulary(own_bundle):
    change_tokenizer(own_bundle, lambda tokenizer: (tokenizer["model"].update(vocab={}), tokenizer.pop("added_tokens")))
    assert refusal(own_bundle).endswith("tokenizer.json has an empty vocabulary; export the checkpoint again")


def test_c8_a_template_without_the_ids_of_its_tokens(own_bundle):
    """The tokenizers library panics at the first text."""
    change_tokenizer(own_bundle, lambda tokenizer: tokenizer["post_processor"]["special_tokens"].pop("[CLS]"))
    assert "tokenizer.json puts [CLS] around texts, with the ids []; expected ids of its vocabulary" in refusal(
        own_bundle
    )


@pytest.mark.parametrize("ids", [[], [99_999]])
def test_c8_a_template_whose_ids_are_no_tokens(own_bundle, ids):
    change_tokenizer(
        own_bundle, lambda tokenizer: tokenizer["post_processor"]["special_tokens"]["[SEP]"].update(ids=ids)
    )
    assert f"puts [SEP] around texts, with the ids {ids}; expected ids of its vocabulary" in refusal(own_bundle)


def test_c8_a_template_among_several_processors(own_bundle):
    def wrap(tokenizer):
        tokenizer["post_processor"]["special_tokens"].pop("[SEP]")
        tokenizer["post_processor"] = {"type": "Sequence", "processors": [tokenizer["post_processor"]]}

    change_tokenizer(own_bundle, wrap)
    assert "puts [SEP] around texts" in refusal(own_bundle)


def test_c8_padding_with_an_id_that_is_no_token(own_bundle):
    edit(own_bundle, lambda manifest: manifest.update(pad_token_id=4711))
    assert "pads with the id 4711, which no token of tokenizer.json has" in refusal(own_bundle)


@pytest.mark.parametrize("labels", [["bad", "good"], ["a", "b", "c", "d"]])
def test_c8_more_or_fewer_labels_than_the_graph_answers_with(own_bundle, labels):
    edit(own_bundle, lambda manifest: manifest.update(labels=labels))
    assert f"model.onnx answers with 3 labels; its manifest names {len(labels)}; export" in refusal(own_bundle)
