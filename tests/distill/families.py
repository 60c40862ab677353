"""Tiny random models of every family of encoders, with weights large enough that each of them matters."""

import torch
import transformers

from potstill.distill.hooks import model_inputs

VOCABULARY = 60
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
FAMILIES = {
    "Bert": SIZES,
    "Roberta": SIZES | {"max_position_embeddings": 40},
    "XLMRoberta": SIZES | {"max_position_embeddings": 40},
    "DistilBert": {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    "Electra": SIZES | {"embedding_size": 8},
    "MobileBert": SIZES | {"embedding_size": 6, "intra_bottleneck_size": 8},
    "ModernBert": SIZES | SPECIAL | {"decoder_bias": False, "local_attention": 4},
}
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
# XLM-RoBERTa is RoBERTa by another name: one head shows that the name does not matter.
PAIRS = [(family, head) for family in FAMILIES for head in HEADS if family != "XLMRoberta" or head == "ForMaskedLM"]


def build(family, head="ForMaskedLM", **changes):
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family] | changes)
    model = getattr(transformers, f"{family}{head}")(config).eval()
    # Fresh layers are near the identity, fresh biases are 0 and fresh norms are 1; nothing may hide behind that.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2, generator=generator)
            if "norm.weight" in name.lower():
                parameter.add_(1)
    return model


def batch_for(model):
    """Return two texts, one padded, of two token types where the model has them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    types = torch.randint(0, getattr(model.config, "type_vocab_size", 1), (2, 7), generator=generator)
    labels = torch.tensor([0, 1])
    batch = {"input_ids": ids.where(mask.bool(), 0), "attention_mask": mask, "token_type_ids": types}
    return model_inputs(model, batch | {"labels": labels})
