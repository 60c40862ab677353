"""Write the bare matrix products that `potstill.bench.peak` times: small ONNX files in `potstill/bench/products`.

    python benchmarks/bench/make_products.py [FOLDER]        (or: make products)

Each computes `y = x · w` with any number of rows in `x`. The weight is a constant as in a model, but the file holds
only its recipe, which onnxruntime folds into an initializer when it loads the file: cosines for float32, and for int8
remainders of 128 less 64. Weights of 7 bits: nothing overflows where a CPU adds pairs of products in 16 bits.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).resolve().parents[2] / "potstill/bench/products"
# Inner size and columns of the weights: a feed-forward layer of BERT-base and a square one.
WEIGHTS = ((768, 3072), (768, 768))
_OPSET, _IR_VERSION = 13, 8


def make_product(kind: str, inner: int, columns: int) -> onnx.ModelProto:
    """Return the product of one number type, `fp32` or `int8`, with a weight of shape (inner, columns)."""
    constants = {
        "zero": np.array(0, dtype=np.int64),
        "size": np.array(inner * columns, dtype=np.int64),
        "one": np.array(1, dtype=np.int64),
        "shape": np.array([inner, columns], dtype=np.int64),
    }
    nodes = [helper.make_node("Range", ["zero", "size", "one"], ["numbers"])]
    if kind == "fp32":
        given, result, operator = TensorProto.FLOAT, TensorProto.FLOAT, "MatMul"
        nodes += [
            helper.make_node("Cast", ["numbers"], ["angles"], to=TensorProto.FLOAT),
            helper.make_node("Cos", ["angles"], ["values"]),
        ]
    else:
        given, result, operator = TensorProto.UINT8, TensorProto.INT32, "MatMulInteger"
        constants |= {"period": np.array(128, dtype=np.int64), "middle": np.array(64, dtype=np.int64)}
        constants |= {"step": np.array(37, dtype=np.int64)}
        nodes += [
            helper.make_node("Mul", ["numbers", "step"], ["mixed"]),
            helper.make_node("Mod", ["mixed", "period"], ["remainders"]),
            helper.make_node("Sub", ["remainders", "middle"], ["centred"]),
            helper.make_node("Cast", ["centred"], ["values"], to=TensorProto.INT8),
        ]
    nodes += [
        helper.make_node("Reshape", ["values", "shape"], ["w"]),
        helper.make_node(operator, ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", given, ["rows", inner])],
        [helper.make_tensor_value_info("y", result, ["rows", columns])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="potstill"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main(folder: Path) -> None:
    """Write all products into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for inner, columns in WEIGHTS:
        for kind in ("fp32", "int8"):
            onnx.save(make_product(kind, inner, columns), folder / f"{kind}_{inner}x{columns}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
