import json
import zlib

import numpy as np
import pytest

from potstill.bench.measure.size import compressed_bytes, count_flops_per_token, embedding_parameters

BERT_BASE = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
TINY = {"vocab_size": 50, "max_position_embeddings": 40, "num_attention_heads": 2}
USUAL = TINY | {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}
FAMILIES = {
    "bert": USUAL,
    "roberta": USUAL,
    "xlm-roberta": USUAL,
    "camembert": USUAL,
    "mpnet": USUAL,
    "electra": USUAL | {"embedding_size": 8},
    "albert": USUAL | {"embedding_size": 16, "inner_group_num": 2},
    "distilbert": TINY | {"dim": 16, "n_layers": 3, "hidden_dim": 24, "n_heads": 2},
    "mobilebert": USUAL | {"embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 2},
    "modernbert": USUAL | {"pad_token_id": 0, "local_attention": 4},
    "deberta": USUAL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": USUAL
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4, "share_att_key": True},
}
# Products of constants alone, which are the same for every text.
POSITION_PRODUCTS = {"deberta": 3 * 2 * 2 * 12 * 16 * 16 * 2, "deberta-v2": 3 * 2 * 2 * 4 * 16 * 16 * 2}


def make_model(family):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(family, **({"pad_token_id": 1} | FAMILIES[family]))
    model = AutoModel.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    return model, json.loads(config.to_json_string(use_diff=False))


def test_bert_base_is_as_computed_by_hand():
    products = 2 * 12 * (4 * 768 * 768 + 2 * 768 * 3072)  # 169,869,312 per token
    flops = count_flops_per_token(BERT_BASE, [1, 128])
    assert flops == {1: products + 12 * 4 * 768, 128: products + 12 * 4 * 128 * 768}
    assert products == 169_869_312
    # Devlin et al. (2019): 110 M parameters, of which 23.8 M are these tables.
    assert embedding_parameters(BERT_BASE) == (30522 + 512 + 2) * 768 == 23_835_648


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_torch_counts(family):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, config = make_model(family)
    length = 12
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.full((1, length), 7), attention_mask=torch.ones(1, length, dtype=torch.int64))
    pooler = getattr(model, "pooler", None)
    head = 0 if pooler is None else 2 * sum(weight.numel() for weight in pooler.parameters() if weight.dim() == 2)
    expected = counter.get_total_flops() - head - POSITION_PRODUCTS.get(family, 0)
    assert count_flops_per_token(config, [length])[length] * length == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_the_models_own_tables(family):
    import torch

    model, config = make_model(family)
    tables = [part.weight.numel() for part in model.embeddings.modules() if isinstance(part, torch.nn.Embedding)]
    assert embedding_parameters(config) == sum(tables)


@pytest.mark.parametrize("missing", ["model_type", "hidden_size", "num_hidden_layers", "intermediate_size"])
def test_what_is_not_known_is_not_guessed(missing):
    config = {name: value for name, value in BERT_BASE.items() if name != missing}
    assert count_flops_per_token(config) is None


@pytest.mark.parametrize(
    "changes", [{"model_type": "squeezebert"}, {"model_type": "deberta", "talking_head": True}, {"conv_kernel_size": 3}]
)
def test_families_with_other_products_are_not_guessed(changes):
    assert count_flops_per_token(BERT_BASE | changes) is None


def test_an_unknown_family_has_no_known_embeddings():
    assert embedding_parameters(BERT_BASE | {"model_type": "xlnet"}) is None
    assert embedding_parameters({}) is None
    assert embedding_parameters({"model_type": "tiny", "vocab_size": 64}) is None


def test_lengths_end_at_the_models_positions():
    assert list(count_flops_per_token(BERT_BASE)) == [1, 8, 16, 32, 64, 128, 256, 512]
    roberta = BERT_BASE | {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert list(count_flops_per_token(roberta, [512, 513])) == [512]


def test_compressed_bytes_are_zlibs_of_each_file(tmp_path):
    noise = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "noise").write_bytes(noise)
    (tmp_path / "zeros").write_bytes(bytes(1_000_000))
    both = compressed_bytes([tmp_path / "noise", tmp_path / "zeros"])
    assert both == len(zlib.compress(noise, 6)) + len(zlib.compress(bytes(1_000_000), 6))
    assert compressed_bytes([]) == 0
    assert 300_000 < both < 303_000


@pytest.mark.parametrize("count", [2_200_000, 6_000_000])
def test_pieces_stand_for_the_whole(tmp_path, count):
    # Weights of 16 bits kept in 32, which shrink as no noise does; 9 pieces are all read, of 23 only 16.
    weights = np.random.default_rng(0).normal(size=count).astype(np.float16).astype(np.float32)
    (tmp_path / "weights").write_bytes(weights.tobytes())
    whole = len(zlib.compress(weights.tobytes(), 6))
    assert compressed_bytes([tmp_path / "weights"]) == pytest.approx(whole, rel=0.003)
