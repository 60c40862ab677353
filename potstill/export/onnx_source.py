"""Find an ONNX model that another tool exported, and read what a bundle needs to know of it.

Three layouts are common: optimum's flat folder, the hub's `onnx/` below a checkpoint's files (transformers.js and
sentence-transformers), and a single file with config.json and tokenizer.json beside it or one level up.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import GraphProto, TensorProto, TypeProto, ValueInfoProto, helper
from transformers import AutoConfig, PretrainedConfig

from potstill.bundle import Precision
from potstill.errors import CheckpointError
from potstill.export.onnx_files import load_graph, read_safe
from potstill.onnx_inspect import INT4, UINT4, Outline, check_declared_precision, count_parameters
from potstill.tasks import FEATURE_EXTRACTION, TASKS, Task, get_task

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZER_OUTPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Every int8-static file also passes for int8, so the stricter rule is asked first.
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-static", "int8")
_FOUR_BITS = frozenset({INT4, UINT4})
# Task -> its outputs with their number of axes.
_OUTPUTS: dict[str, dict[str, int]] = {
    "text-classification": {"logits": 2},
    "token-classification": {"logits": 3},
    "question-answering": {"start_logits": 2, "end_logits": 2},
    "fill-mask": {"logits": 3},
    "feature-extraction": {"last_hidden_state": 3, "token_embeddings": 3, "sentence_embedding": 2},
}
_LABELLED = ("text-classification", "token-classification")
# Feature extraction: a vector per token, or one per text, or both.
_FEATURES = ("last_hidden_state", "sentence_embedding")
# Further outputs of transformers' models, which are ignored.
_BESIDE = ("pooler_output", "hidden_states", "attentions")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxSource:
    """An ONNX file and the metadata beside it.

    Attributes:
        file: the ONNX file; its weights may be in further files of the same folder.
        folder: the folder with config.json and tokenizer.json.
        task: the name of its task.
        config: config.json, as transformers reads it.
        inputs: names of the graph's inputs, all of which a tokenizer makes.
        outputs: names of the graph's outputs that the task needs.
        labels: the labels in the order of the outputs.
        parameters: the number of weights, in any storage type.
        precision: the file's precision; other than fp32 it can only be published as it is.
        weight_only: whether an int8 file stores integers but multiplies floats.
    """

    file: Path
    folder: Path
    task: str
    config: PretrainedConfig
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    parameters: int
    precision: Precision = "fp32"
    weight_only: bool = False


def find_onnx_source(source: str | Path, *, task: str | None = None) -> OnnxSource | None:
    """Return the ONNX model at `source`; None if that is a checkpoint, a hub id or does not exist.

    A folder with a checkpoint's own weights is a checkpoint, even if it has ONNX files: a graph that is traced here is
    better (fused attention, no padding). Pass the path of the ONNX file to use that one.

    Args:
        source: an .onnx file, or a folder with `model.onnx` or `onnx/model.onnx`.
        task: the name of the task; None takes it from config.json and the graph's outputs.

    Raises:
        CheckpointError: if several files could be meant, config.json or tokenizer.json is missing, or the file is not
            an encoder for one of potstill's tasks, with dynamic batch and length, in fp32, fp16 or int8.
        TamperedError: if the file is cut short, or keeps weights outside of its folder.
        BundleError: if it is no ONNX file.
        UsageError: if `task` is not known.
    """
    file = _find_file(Path(source).expanduser())
    if file is None:
        return None
    folder = _find_folder(file)
    outline = read_safe(file)
    graph = load_graph(file).graph
    packed = _count_packed_weights(file, graph)
    precision, weight_only = _find_precision(file, outline)
    constants = {tensor.name for tensor in graph.initializer}  # up to IR version 3 these are listed as inputs, too
    config = _load_config(folder)
    outputs = {value.name: value.type.tensor_type for value in graph.output}
    chosen = get_task(task) if task else _infer_task(file, config, outputs)
    labels = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return OnnxSource(
        file=file,
        folder=folder,
        task=chosen.name,
        config=config,
        inputs=_check_inputs(file, [value for value in graph.input if value.name not in constants]),
        outputs=_check_outputs(file, outputs, task=chosen, num_labels=len(labels)),
        labels=labels,
        parameters=count_parameters(outline, packed),
        precision=precision,
        weight_only=weight_only,
    )


def _find_file(source: Path) -> Path | None:
    if source.suffix == ".onnx" and not source.is_dir():
        if not source.is_file():
            raise CheckpointError(f"there is no file {source}; name an ONNX file or a folder that holds one")
        return source
    if not source.is_dir() or any((source / name).is_file() for name in _WEIGHTS):
        return None
    found = sorted([*source.glob("*.onnx"), *source.glob("onnx/*.onnx")])
    named = [file for file in found if file.name == "model.onnx"]
    if len(named or found) > 1:
        names = ", ".join(file.relative_to(source).as_posix() for file in named or found)
        raise CheckpointError(f"{source} has {names}, and it is not clear which is meant; name the fp32 file itself")
    return next(iter(named or found), None)


def _find_folder(file: Path) -> Path:
    """Return the folder beside the file, or one level up, that has config.json and tokenizer.json."""
    beside = file.absolute().parent
    folder = next((folder for folder in (beside, beside.parent) if (folder / "config.json").is_file()), None)
    if folder is None:
        raise CheckpointError(f"there is no config.json beside {file} nor one level up; copy the checkpoint's there")
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json; save the checkpoint's fast tokenizer there")
    return folder


def _load_config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder / 'config.json'} cannot be read by transformers: {reason}") from error


def _find_precision(file: Path, outline: Outline) -> tuple[Precision, bool]:
    """Return the precision of a file, and whether its int8 weights are multiplied as floats.

    Raises:
        CheckpointError: if it is none of a bundle's precisions.
    """
    for precision in _PRECISIONS:
        if check_declared_precision(outline, precision) is None:
            return precision, False
    if check_declared_precision(outline, "int8", weight_only=True) is None:
        return "int8", True
    raise CheckpointError(
        f"{file} is not fp32: {check_declared_precision(outline, 'fp32')}; nor is it fp16 or int8, which a bundle also "
        f"holds ({check_declared_precision(outline, 'int8')}); name the fp32 file, the others are made from it"
    )


def _count_packed_weights(file: Path, graph: GraphProto) -> dict[str, int]:
    """Return the number of weights in each constant of MatMulNBits and GatherBlockQuantized that is stored in blocks.

    Raises:
        CheckpointError: if weights have fewer bits than 8, but for a table of bytes with two numbers in each.
    """
    found = {}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        bits = settings.get("bits", 4)  # the operators' default
        if node.op_type == "GatherBlockQuantized" and node.input[0] in stored:
            found[node.input[0]] = math.prod(stored[node.input[0]].dims) * 8 // bits
        elif node.op_type == "MatMulNBits":
            if bits != 8:
                raise CheckpointError(
                    f"{file} has weights of {bits} bits ({node.op_type}); a bundle holds fp32, fp16 and int8; name the "
                    "fp32 file, int8 is made from it"
                )
            found[node.input[1]] = settings["K"] * settings["N"]
    small = sorted({tensor.data_type for tensor in stored.values()} & _FOUR_BITS)
    if small:
        raise CheckpointError(
            f"{file} has weights of {TensorProto.DataType.Name(small[0]).lower()}; a bundle holds fp32, fp16 and int8; "
            "name the fp32 file, int8 is made from it"
        )
    return found


def _infer_task(file: Path, config: PretrainedConfig, outputs: Iterable[str]) -> Task:
    """Infer the task by the outputs first: masked-LM checkpoints are often exported for their vectors."""
    if "logits" not in outputs and any(name in outputs for name in _FEATURES):
        return FEATURE_EXTRACTION
    architectures = tuple(config.architectures or ())
    for task in TASKS.values():
        ending = task.model_class.removeprefix("AutoModel")  # such as ForTokenClassification
        if ending and any(name.endswith(ending) for name in architectures):
            return task
    raise CheckpointError(
        f"the task of {file} is not known from the architecture {', '.join(architectures) or 'that is not named'} and "
        f"the outputs {', '.join(outputs)}; name one with --task: {', '.join(TASKS)}"
    )


def _check_inputs(file: Path, values: Sequence[ValueInfoProto]) -> tuple[str, ...]:
    names = tuple(value.name for value in values)
    unknown = [name for name in names if name not in _TOKENIZER_OUTPUTS]
    if unknown or "input_ids" not in names:
        raise CheckpointError(
            f"{file} takes {', '.join(unknown or names)}; a tokenizer makes {', '.join(_TOKENIZER_OUTPUTS)}, of which "
            "input_ids is needed; export the checkpoint itself"
        )
    for value in values:
        tensor = value.type.tensor_type
        fixed = [dim.dim_value for dim in tensor.shape.dim if dim.dim_value > 0]
        if fixed or len(tensor.shape.dim) != 2:
            shape = " x ".join(str(dim.dim_value or dim.dim_param or "?") for dim in tensor.shape.dim)
            raise CheckpointError(
                f"{file} takes {value.name} in the shape {shape or '()'}; expected batch x length, both free; "
                "export it with dynamic axes"
            )
        if tensor.elem_type != TensorProto.INT64:
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            raise CheckpointError(f"{file} takes {value.name} as {kind}; expected int64; export the checkpoint itself")
    return names


def _check_outputs(
    file: Path, found: Mapping[str, TypeProto.Tensor], *, task: Task, num_labels: int
) -> tuple[str, ...]:
    """Return the outputs that the task needs, after checking names, axes and number of labels."""
    wanted = _OUTPUTS[task.name]
    have = tuple(name for name in wanted if name in found)
    if not have or (task is not FEATURE_EXTRACTION and len(have) < len(wanted)) or have == ("token_embeddings",):
        raise CheckpointError(
            f"{file} gives {', '.join(found)}; {task.name} needs {', '.join(wanted)}; name another --task"
        )
    strange = [name for name in found if name not in wanted and not name.startswith(_BESIDE)]
    if strange:
        raise CheckpointError(
            f"{file} gives {', '.join(strange)}, which {task.name} does not have; name another --task, or export the "
            "checkpoint itself"
        )
    for name in have:
        dims = found[name].shape.dim
        if len(dims) != wanted[name]:
            raise CheckpointError(
                f"{file} gives {name} with {len(dims)} axes; {task.name} has {wanted[name]}; name another --task"
            )
        # 0 is a dynamic dimension, of which nothing can be said.
        if task.name in _LABELLED and dims[-1].dim_value not in {0, num_labels}:
            raise CheckpointError(
                f"{file} answers with {dims[-1].dim_value} labels and config.json names {num_labels}; copy the "
                "config.json of the same checkpoint there"
            )
    return have
