"""Load every bundle with OpenVINO and compare: python with_openvino.py DIR, where make_bundles.py wrote."""

from importlib.metadata import version

import numpy as np
import openvino
from compare import compare

# Other kernels altogether: over ten families, 1e-6 in fp32 and up to 1.6 % of the largest answer in int8.
TOLERANCES = {"fp32": 1e-3, "int8": 3e-2, "int8-static": 3e-2}


def ask(case, file_name):
    bundle = case.bundle
    core = openvino.Core()
    model = core.read_model(bundle / "onnx" / file_name)
    # Without the hint, newer CPUs compute in bfloat16.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = []
    for batch in case.batches:
        inputs = {name: np.array(ids) for name, ids in batch["inputs"].items()}
        outputs = compiled(inputs)
        answers.append({port.any_name: outputs[port] for port in compiled.outputs})
    return answers


compare(f"openvino {version('openvino')}", ask, tolerances=TOLERANCES)
