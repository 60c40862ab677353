"""`potstill doctor`: print cores, memory, CPU features, the GPU, and the extras that are installed."""

from importlib import metadata
from importlib.util import find_spec
from typing import Any

import typer

from potstill import machine
from potstill.cli.options import JsonOption
from potstill.extras import EXTRAS

# The first version whose GatherBlockQuantized takes a table of bytes.
_FOUR_BITS_SINCE = (1, 22)
_SHOWN = ("serve", "bench", "distill", "export", "openvino")


def doctor(as_json: JsonOption = False) -> None:
    """Tell what this machine offers, and what is missing.

    Cores, memory, CPU features, GPU, and which extras are installed.

    Example: potstill doctor
    """
    from potstill.cli.render import print_json, print_pairs, print_table

    environment = machine.describe()
    missing = {
        extra: [module for module in modules if find_spec(module) is None]
        for extra, modules in EXTRAS.items()
        if extra in _SHOWN
    }
    findings = environment | {
        "fast_int8": machine.has_fast_int8(),
        "fast_bf16": machine.has_fast_bf16(),
        "openvino": _openvino(),
        "gpu": _gpu(),
        "missing": missing,
        "warnings": _warnings(),
    }
    if as_json:
        print_json(findings)
        return
    memory = environment["memory_bytes"]
    print_pairs(
        "This machine",
        {
            "system": f"{environment['os']}, Python {environment['python']}",
            "CPU": environment["cpu"],
            "features": " ".join(environment["cpu_features"]) or "none that matter here",
            "cores": f"{environment['cores']} for this process, {environment['cores_of_host']} in the host",
            "memory": f"{memory / 2**30:.1f} GiB" if memory else None,
            "int8": "exact and fast (VNNI, AMX or dot product)" if findings["fast_int8"] else "7-bit weights, slower",
            "bf16": "computed by the CPU" if findings["fast_bf16"] else "emulated by the CPU: float32 is faster",
            "OpenVINO": findings["openvino"],
            "GPU": findings["gpu"],
        },
    )
    rows = [
        [extra, "ready" if not lacking else f"missing {', '.join(lacking)}: pip install 'potstill[{extra}]'"]
        for extra, lacking in missing.items()
    ]
    print_table("\nExtras", ["extra", "state"], rows)
    for warning in findings["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


def _openvino() -> str:
    """Say whether the second engine is there, and for which files it pays on this CPU."""
    # Measured in turns on AVX512-VNNI: docs/serve.md, "Another engine".
    pays = "pays for int8-static" if machine.has_fast_int8() else "not tried on such a CPU"
    if find_spec("openvino") is None:
        return f"not installed; {pays} (--engine openvino)"
    return f"{metadata.version('openvino')}, {pays} (--engine openvino); int8 is for onnxruntime"


def _gpu() -> str:
    """Return the names of the GPUs that torch can use, or why there is none."""
    if find_spec("torch") is None:
        return "unknown: torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(names)


def _warnings() -> list[str]:
    """Return faults of the installation that no import error shows."""
    found: list[Any] = []
    installed = {distribution.name.lower() for distribution in metadata.distributions() if distribution.name}
    # Both packages write the same folder `onnxruntime`; which of them is imported depends on the order of installation.
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        found.append("onnxruntime and onnxruntime-gpu are both installed and overwrite each other; uninstall one")
    runtime = machine.versions().get("onnxruntime")
    if runtime is not None and tuple(map(int, runtime.split(".")[:2])) < _FOUR_BITS_SINCE:
        found.append(f"onnxruntime {runtime} does not read words in 4 bits (--embedding-bits 4); install 1.22 or later")
    return found
