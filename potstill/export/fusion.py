"""What a graph is made of: the receipt that a layer's attention, and every activation and norm, became one operator."""

from collections import Counter
from typing import Any

import onnx
from optimum.utils import NormalizedConfigManager
from transformers import PretrainedConfig

from potstill.errors import ParityError
from potstill.export.attention import OPERATORS


def fusion_receipt(graph: onnx.ModelProto, config: PretrainedConfig) -> dict[str, Any]:
    """Count the operators that matter in the graph of a model with this configuration.

    Returns:
        `attention`, which of the forms, `attention_expected` as the configuration's layers have it, and
        `attention_found`; `layer_norms`, `gelus` and all `nodes`; `shape_nodes`, those that compute with sizes and
        constants only.
    """
    counts = Counter(node.op_type for node in graph.graph.node)
    standard = counts[OPERATORS["onnx"]] > 0
    return {
        "attention": "onnx" if standard else "fused",
        "attention_expected": count_layers(config),
        "attention_found": counts[OPERATORS["onnx"]] + counts[OPERATORS["fused"]] + counts["QAttention"],
        "layer_norms": counts["LayerNormalization"],
        "gelus": counts["Gelu"],
        "nodes": len(graph.graph.node),
        "shape_nodes": _count_shape_nodes(graph.graph),
    }


def check_fusion(receipt: dict[str, Any]) -> None:
    """Refuse a graph in which a layer's attention is missing.

    Raises:
        ParityError: with both counts.
    """
    if receipt["attention_found"] != receipt["attention_expected"]:
        raise ParityError(
            f"the graph has {receipt['attention_found']} fused attention operators for "
            f"{receipt['attention_expected']} layers: this family computes attention in its own way, so the file "
            "would be right but slower; export it as it is with --allow-unfused"
        )


def count_layers(config: Any) -> int:
    """Return how often the model attends; an ALBERT layer may be a group of several."""
    try:
        layers = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config).num_layers
    except KeyError:  # optimum does not know MobileBERT
        layers = config.num_hidden_layers
    return int(layers) * int(getattr(config, "inner_group_num", 1))


def _count_shape_nodes(graph: onnx.GraphProto) -> int:
    constants = {tensor.name for tensor in graph.initializer} | {""}
    from_sizes: set[str] = set()
    count = 0
    for node in graph.node:
        varying = set(node.input) - constants
        if node.op_type == "Shape" or (varying and varying <= from_sizes):
            from_sizes.update(node.output)
            count += 1
    return count
