"""Run command lines in processes of their own that cannot import torch; read as JSON on stdin, answered on stdout.

One process imports the light parts once and forks for every command, which costs milliseconds instead of a second. In
each child the named modules cannot be imported: the command says so and ends with exit code 77.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path

HEAVY = ("torch", "transformers", "onnx", "optimum", "datasets", "accelerate")
LOADED_HEAVY = 77


class Blocked:
    """A finder that ends the process, or says that a module is not installed, when one of `names` is looked for."""

    def __init__(self, names, *, missing):
        self.names, self.missing = names, missing

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            if self.missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            os.write(2, f"imported {name}\n".encode())
            os._exit(LOADED_HEAVY)


def run_all(jobs):
    """Return exit code, stdout and stderr of every job: `argv` or `code`, with `env`, `cwd`, `missing`, `file_size`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*sys.path[:1], Path(__file__).parents[2]]))}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(jobs), capture_output=True, text=True, env=environment, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _child(job):
    os.chdir(job["cwd"])
    os.environ.update(job.get("env", {}))
    missing = job.get("missing", [])
    sys.meta_path.insert(0, Blocked(missing or HEAVY, missing=bool(missing)))
    if "file_size" in job:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], job["file_size"]))
    try:
        if "code" in job:
            exec(job["code"], {"__name__": "__main__"})
            return 0
        from potstill.cli import main

        sys.argv = ["potstill", *job["argv"]]
        main()
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1


def _run(job):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(number, "wb"), "utf-8") for number in (1, 2))
            code = _child(job)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        for stream in (out, err):
            stream.seek(0)
        return os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode()


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    if any("argv" in job for job in asked):
        for light in ("potstill.cli.app", "potstill.cli.checks", "potstill.cli.options", "potstill.pipeline"):
            import_module(light)
    json.dump([_run(job) for job in asked], sys.stdout)
