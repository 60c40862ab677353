"""Random models of every family, so small that an export takes seconds, and the grid they are held against."""

import functools

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from transformers import (
    AlbertConfig,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MegatronBertConfig,
    MobileBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from potstill.checkpoint import accepted_inputs
from potstill.export.checks import masks
from potstill.export.graph import build_graph

LAYERS, VOCABULARY, LONGEST = 2, 90, 40
# Relative to the largest answer. MobileBERT, whose layers have no norms, showed 1.4e-5, the others 3e-6; a wrong mask
# shows 1e-2.
TOLERANCE = 5e-5

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": LONGEST,
}
# RoBERTa counts positions from behind its padding id.
_ROBERTA = _SIZES | {"max_position_embeddings": LONGEST + 2, "pad_token_id": 1}
_DEBERTA = _SIZES | {"relative_attention": True, "pooler_hidden_size": 16}

FAMILIES = {
    "bert": lambda: BertConfig(**_SIZES),
    "roberta": lambda: RobertaConfig(**_ROBERTA),
    "xlm-roberta": lambda: XLMRobertaConfig(**_ROBERTA),
    "camembert": lambda: CamembertConfig(**_ROBERTA),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, n_layers=LAYERS, n_heads=2, hidden_dim=32, max_position_embeddings=LONGEST
    ),
    "electra": lambda: ElectraConfig(**_SIZES, embedding_size=8),
    "mobilebert": lambda: MobileBertConfig(
        **_SIZES, embedding_size=8, true_hidden_size=16, intra_bottleneck_size=16, num_feedforward_networks=2
    ),
    # The exporter turns a matrix that layers share anew for each, but only one of more than 1024 numbers.
    "albert": lambda: AlbertConfig(**_SIZES | {"intermediate_size": 128}, embedding_size=8),
    "mpnet": lambda: MPNetConfig(**_ROBERTA),
    # A window of 4 to either side: some padding sees nothing at all.
    "modernbert": lambda: ModernBertConfig(
        **_SIZES,
        pad_token_id=0,
        cls_token_id=1,
        bos_token_id=1,
        sep_token_id=2,
        eos_token_id=2,
        local_attention=8,
        global_attn_every_n_layers=2,
    ),
    # As in DeBERTa v3, and with everything that v2 has otherwise.
    "deberta-v3": lambda: DebertaV2Config(
        **_DEBERTA,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "deberta-v2": lambda: DebertaV2Config(
        **_DEBERTA, pos_att_type="c2p|p2c", max_relative_positions=6, type_vocab_size=2, conv_kernel_size=3
    ),
    # Computes attention in its own way.
    "megatron-bert": lambda: MegatronBertConfig(**_SIZES),
}
TASKS = {
    "text-classification": ("AutoModelForSequenceClassification", ("logits",)),
    "token-classification": ("AutoModelForTokenClassification", ("logits",)),
    "question-answering": ("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
    "fill-mask": ("AutoModelForMaskedLM", ("logits",)),
    "feature-extraction": ("AutoModel", ("last_hidden_state",)),
}


def build(family, task):
    """Return a model whose weights mix tokens, so that a wrong mask or position shows; no two of them are equal."""
    torch.manual_seed(0)
    config = FAMILIES[family]()
    config.num_labels = 2 if task == "question-answering" else 3
    model = getattr(transformers, TASKS[task][0]).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(std=0.1))
    return model


def export(family, task, *, attention="fused", **options):
    """Return a model and its graph."""
    model = build(family, task)
    outputs = TASKS[task][1]
    return model, build_graph(model, inputs=accepted_inputs(model), outputs=outputs, attention=attention, **options)


@functools.cache
def _exported(family, task, attention):
    return export(family, task, attention=attention)


def exported(family, task, attention="fused"):
    """Return a model and its graph, made once for all tests."""
    return _exported(family, task, attention)  # with or without the default, it is one key of the cache


def cases(tasks, *, attention="fused"):
    """Return a fixture that gives the name, the model and the graph of each family of `tasks`: family -> task."""

    @pytest.fixture(params=sorted(tasks))
    def case(request):
        return request.param, *exported(request.param, tasks[request.param], attention)

    return case


def open_session(graph):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def grid(model, inputs):
    """Yield (name, feeds): batch {1, 2, 8} x length {1, 2, 7, 33} x mask {full, ragged right, ragged left, hole}."""
    generator = np.random.default_rng(0)
    for batch_size in (1, 2, 8):
        for length in (1, 2, 7, 33):
            for name, mask in masks(batch_size, length, generator):
                ids = generator.integers(3, VOCABULARY, size=(batch_size, length))
                # RoBERTa counts its positions by these.
                ids[mask == 0] = model.config.pad_token_id or 0
                types = np.zeros_like(ids)
                types[:, length // 2 :] = int(getattr(model.config, "type_vocab_size", 1) > 1)
                feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
                yield f"{batch_size}x{length}, {name}", {name: feeds[name] for name in inputs}


def answers(model, feeds):
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(value) for name, value in feeds.items()})


def check_answers(model, graph):
    """Assert that a graph gives torch's answers over the grid, at padding too."""
    session = open_session(graph)
    inputs = [entry.name for entry in session.get_inputs()]
    for name, feeds in grid(model, inputs):
        expected = answers(model, feeds)
        for entry in session.get_outputs():
            wanted, found = expected[entry.name].numpy(), session.run([entry.name], feeds)[0]
            assert found.shape == wanted.shape
            difference = np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
            assert difference < TOLERANCE, f"{entry.name} at {name} differs by {difference:.2g}"
