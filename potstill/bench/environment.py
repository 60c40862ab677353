"""The machine and its software, as a report names them."""

from pathlib import Path

from potstill import machine
from potstill.bench.engines.gpus import describe_gpus
from potstill.bench.engines.memory import container_limit
from potstill.bench.measuring import noise
from potstill.bench.report_schema import Environment, Peaks


def describe(*, threads: int, load_before: list[float] | None = None, peaks: Peaks | None = None) -> Environment:
    """Return the environment now; `load_before` is the load average of when the bench began."""
    found = machine.describe()
    now = found.pop("load_average")
    return Environment(
        **found,
        memory_limit_bytes=container_limit(),
        threads=threads,
        governor=noise.governor(),
        turbo=noise.turbo(),
        smt=noise.smt(),
        gpus=describe_gpus(),
        load_before=load_before or now,
        load_after=now,
        peaks=peaks,
    )


def identity(found: Environment) -> dict[str, object]:
    """Return what must be the same for an interrupted bench to go on: the machine and the engines."""
    engines = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tokenizers")
    return {
        "cpu": found.cpu,
        "cores": found.cores,
        "threads": found.threads,
        "packages": {name: version for name, version in found.packages.items() if name in engines},
        "machine": _machine_id(),
    }


def _machine_id() -> str:
    """Return what tells two machines of one kind apart, if the system has it."""
    file = Path("/etc/machine-id")
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""
