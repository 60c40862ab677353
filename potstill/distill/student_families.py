"""Students of another family than their teacher: DistilBERT and MobileBERT.

DistilBERT takes all its weights from a BERT. It has no token types, so the teacher's vector for type 0 is added to
the positions; for single texts nothing changes by that, and a pair's second half loses its mark. Its classifier passes
the pooled state through ReLU where BERT has tanh (transformers' two classes), so a classifier's answers change even
with all layers, and only its hidden states stay; the other heads stay the same.

MobileBERT (Sun et al., arXiv 2004.02984) has other layers than any teacher: its feature maps are as wide as the
teacher's, so that both compare without a projection, and inside each layer a bottleneck does the work. It starts at
random, but for its word embeddings: they are the teacher's in their strongest directions.
"""

import re

import torch
import transformers
from torch import Tensor
from transformers import DistilBertConfig, MobileBertConfig, PreTrainedModel

from potstill.errors import CheckpointError

# transformers' DistilBERT has this epsilon in its code, not in its configuration.
_DISTILBERT_EPSILON = 1e-12

_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "Model")

_TO_DISTILBERT = (
    (r"^bert\.encoder\.layer\.", "distilbert.transformer.layer."),
    (r"^bert\.embeddings\.", "distilbert.embeddings."),
    (r"^bert\.pooler\.dense\.", "pre_classifier."),
    (r"\.attention\.self\.query\.", ".attention.q_lin."),
    (r"\.attention\.self\.key\.", ".attention.k_lin."),
    (r"\.attention\.self\.value\.", ".attention.v_lin."),
    (r"\.attention\.output\.dense\.", ".attention.out_lin."),
    (r"\.attention\.output\.LayerNorm\.", ".sa_layer_norm."),
    (r"\.intermediate\.dense\.", ".ffn.lin1."),
    (r"\.output\.dense\.", ".ffn.lin2."),
    (r"\.output\.LayerNorm\.", ".output_layer_norm."),
    (r"^cls\.predictions\.transform\.dense\.", "vocab_transform."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "vocab_layer_norm."),
    (r"^cls\.predictions\.decoder\.", "vocab_projector."),
)


def to_distilbert(teacher: PreTrainedModel) -> PreTrainedModel:
    """Return a DistilBERT with all layers of a BERT and its head: classifier, tokens, answers, masked LM or none.

    Raises:
        CheckpointError: if the teacher is no BERT, has a head that DistilBERT lacks, or computes what it cannot.
    """
    head, config = _head_of(teacher), teacher.config
    if config.model_type != "bert":
        raise CheckpointError(
            f"a DistilBERT student is cut from a BERT, and this teacher is {type(teacher).__name__}; "
            "use student.family=same"
        )
    if config.hidden_act not in {"gelu", "relu"} or config.layer_norm_eps != _DISTILBERT_EPSILON:
        raise CheckpointError(
            f"DistilBERT has GELU or ReLU and a layer-norm epsilon of {_DISTILBERT_EPSILON}; this teacher has "
            f"{config.hidden_act} and {config.layer_norm_eps}; use student.family=same"
        )
    state = teacher.state_dict()
    # A bare model's keys have no prefix: it is put on for the renaming and taken off again.
    if head == "Model":
        state = {f"bert.{key}": value for key, value in state.items()}
    if head != "ForSequenceClassification":
        state = {key: value for key, value in state.items() if not key.startswith("bert.pooler.")}
    state.pop("cls.predictions.bias", None)  # the decoder's, under its other name
    token_types = state.pop("bert.embeddings.token_type_embeddings.weight")
    positions = "bert.embeddings.position_embeddings.weight"
    # Both are added to the same embedding sum, so for type 0 nothing changes.
    state[positions] = state[positions] + token_types[0]
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in _TO_DISTILBERT:
            key = re.sub(pattern, replacement, key)
        renamed[key.removeprefix("distilbert.") if head == "Model" else key] = value
    student = getattr(transformers, f"DistilBert{head}")(
        DistilBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            activation=config.hidden_act,
            initializer_range=config.initializer_range,
            pad_token_id=config.pad_token_id,
            tie_word_embeddings=config.tie_word_embeddings,
            id2label=config.id2label,
            label2id=config.label2id,
            problem_type=config.problem_type,
        )
    )
    student.load_state_dict(renamed, strict=True)
    return student.eval()


def to_mobilebert(
    teacher: PreTrainedModel,
    *,
    num_layers: int,
    num_heads: int | None = None,
    intermediate_size: int | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a MobileBERT with feature maps as wide as the teacher's, random but for its word embeddings.

    The paper's proportions at the teacher's width H: a bottleneck of about H / 4 (a multiple of the heads), word
    embeddings of H / 4 read three at a time, four feed-forward networks per layer of four times the bottleneck, ReLU,
    no layer norm but scale and shift, no dropout of hidden states (section 3 and table 1, where H is 512).

    Args:
        teacher: any family, with any head of the contract; it is not changed.
        num_layers: how many layers to stack.
        num_heads: None takes the teacher's, as attention transfer needs.
        intermediate_size: width of each feed-forward network.
        seed: of the random weights; the global random state stays as it was.

    Raises:
        CheckpointError: if the heads do not fit the width, or MobileBERT lacks the teacher's head.
    """
    head, config = _head_of(teacher), teacher.config
    width = config.hidden_size
    heads = config.num_attention_heads if num_heads is None else num_heads
    most = max(1, width // 4)
    if not 1 <= heads <= most or (intermediate_size is not None and intermediate_size < 1):
        raise CheckpointError(
            f"a MobileBERT of width {width} cannot have {heads} heads and intermediate_size "
            f"{intermediate_size}; give num_heads of 1 to {most}, and an intermediate_size of at least 1 or none"
        )
    # Heads share the bottleneck's width evenly, so it is a multiple of their number.
    bottleneck = heads * max(1, round(width / 4 / heads))
    teacher_embeddings = teacher.get_input_embeddings()
    mobilebert_config = MobileBertConfig(
        vocab_size=config.vocab_size,
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        intermediate_size=4 * bottleneck if intermediate_size is None else intermediate_size,
        intra_bottleneck_size=bottleneck,
        # The directions of the teacher's embeddings are all there is to keep.
        embedding_size=min(max(1, width // 4), teacher_embeddings.embedding_dim),
        num_feedforward_networks=4,
        max_position_embeddings=config.max_position_embeddings,
        # Tokenizers mark pairs with types 0 and 1, whether the teacher listens or not.
        type_vocab_size=max(2, getattr(config, "type_vocab_size", 2)),
        initializer_range=config.initializer_range,
        pad_token_id=config.pad_token_id,
        id2label=config.id2label,
        label2id=config.label2id,
        problem_type=config.problem_type,
    )
    # CPU only: the model is made there, and forking every GPU's state would initialise CUDA.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = getattr(transformers, f"MobileBert{head}")(mobilebert_config)
    with torch.no_grad():
        vectors = _strongest_directions(teacher_embeddings.weight, mobilebert_config.embedding_size)
        student.get_input_embeddings().weight.copy_(vectors)
    return student.eval()


def _head_of(teacher: PreTrainedModel) -> str:
    name = type(teacher).__name__
    for head in _HEADS:
        if name.endswith(head):
            return head
    raise CheckpointError(f"a student of another family cannot take the head of {name}; use student.family=same")


def _strongest_directions(vectors: Tensor, count: int) -> Tensor:
    """Return vectors (V, H) in the `count` directions that keep most of their inner products, (V, count).

    The leading right singular vectors; no other `count` directions give a closer matrix of inner products (Eckart and
    Young, Psychometrika 1936). The signs, which are free, are such that each direction's largest entry is positive.
    """
    # eigh of the H x H product instead of an SVD of (V, H): V is 30,000 or more. It squares the condition, hence
    # float64.
    wide = vectors.detach().double().cpu()
    _, directions = torch.linalg.eigh(wide.T @ wide)
    # eigh sorts ascending; the strongest are last.
    directions = directions.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return (wide @ (directions * largest.sign())).to(vectors.dtype)
