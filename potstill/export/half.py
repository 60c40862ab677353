"""fp16 for GPUs: half the bytes, the same graph, inputs and outputs as fp32 has them."""

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with 16-bit weights and activations; outputs stay float32.

    A CPU runs it through casts to float32, slower than fp32 and to check the answers only.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    # Shapes are not inferred: onnx knows none behind onnxruntime's own attention operator.
    converted: onnx.ModelProto = convert_float_to_float16(copied, keep_io_types=True, disable_shape_infer=True)
    return converted
