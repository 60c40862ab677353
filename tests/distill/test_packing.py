"""Packing: full rows, and texts that do not see each other."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MobileBertConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from potstill.distill.packing import check_packable, pack, packed_inputs, pair_mask
from potstill.errors import CheckpointError

SIZE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
CONFIGS = {
    "bert": BertConfig(**SIZE),
    "distilbert": DistilBertConfig(
        vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=32, max_position_embeddings=40
    ),
    "electra": ElectraConfig(**SIZE, embedding_size=8),
    "roberta": RobertaConfig(**SIZE | {"pad_token_id": 1}),
    "xlm-roberta": XLMRobertaConfig(**SIZE | {"pad_token_id": 1}),
    # A window of 4 to each side is narrower than the texts are long.
    "modernbert": ModernBertConfig(
        **SIZE,
        local_attention=8,
        global_attn_every_n_layers=3,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    ),
}
# Measured 5e-7 and less: the same sums in another order.
PACKED_IS_PADDED = 1e-5


def test_a_hand_made_packing():
    # 7 opens a row with room 3, 6 one with room 4; 4 fits the second, 3 the first; 2 needs another.
    assert pack(np.array([3, 7, 2, 6, 4]), 10) == [[1, 0], [3, 4], [2]]


def test_every_text_is_packed_once_and_no_row_overflows():
    lengths = np.random.default_rng(0).integers(5, 129, size=3000)
    rows = pack(lengths, 128)
    assert sorted(number for row in rows for number in row) == list(range(3000))
    assert max(lengths[row].sum() for row in rows) <= 128
    # Best fit leaves next to nothing empty where there are short texts.
    assert lengths.sum() / (128 * len(rows)) > 0.98


def test_positions_see_their_own_text_alone():
    seen = pair_mask(torch.tensor([[1, 1, 2, 0]]))[0, 0]
    assert seen.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_texts_have_the_hidden_states_they_have_alone(family, attention):
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS[family], attn_implementation=attention).eval()
    for parameter in model.parameters():  # the usual 0.02 would leave attention next to uniform
        torch.nn.init.normal_(parameter, std=0.3)
    texts = [torch.randint(5, 50, (length,)) for length in (14, 3, 9, 12)]
    ids = torch.full((2, 30), model.config.pad_token_id)
    segments, positions = torch.zeros(2, 30, dtype=torch.long), torch.zeros(2, 30, dtype=torch.long)
    for row, members in enumerate((texts[:3], texts[3:])):
        start = 0
        for number, text in enumerate(members, 1):
            place = slice(start, start := start + len(text))
            ids[row, place], segments[row, place], positions[row, place] = text, number, torch.arange(len(text))
    inputs = packed_inputs({"segments": segments, "position_ids": positions}, model.config, dtype=torch.float32)
    with torch.inference_mode():
        packed = model(input_ids=ids, **inputs).last_hidden_state
        alone = [model(input_ids=text[None]).last_hidden_state[0] for text in texts]
    assert packed.isfinite().all()
    torch.testing.assert_close(packed[segments > 0], torch.cat(alone), rtol=0, atol=PACKED_IS_PADDED)


def test_models_that_would_mix_texts_are_refused():
    with pytest.raises(CheckpointError, match="reads the tokens beside it"):
        check_packable(MobileBertConfig(attn_implementation="sdpa"))
    with pytest.raises(CheckpointError, match="not known to be safe with gpt2"):
        check_packable(type("Config", (), {"model_type": "gpt2", "_attn_implementation": "sdpa"})())
    with pytest.raises(CheckpointError, match="flash_attention_2"):
        check_packable(BertConfig(attn_implementation="flash_attention_2"))
