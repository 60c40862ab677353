"""infinity_emb with its ONNX engine on the same file.

    python infinity.py --bundle BUNDLE --port 8000 --threads 2

A classifier is asked at /classify. infinity chooses the file itself, so it is given a folder that holds one.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp

parser = argparse.ArgumentParser()
parser.add_argument("--bundle", type=Path, required=True)
parser.add_argument("--file", default="model.onnx")
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
arguments = parser.parse_args()

folder = Path(mkdtemp()) / "model"
folder.mkdir(parents=True)
for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
    shutil.copy(arguments.bundle / name, folder)
(folder / "model.onnx").symlink_to((arguments.bundle / "onnx" / arguments.file).resolve())
os.environ |= {
    "OMP_NUM_THREADS": str(arguments.threads),
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
command = [
    str(Path(sys.executable).with_name("infinity_emb")),
    "v2",
    "--model-id",
    ".",
    "--served-model-name",
    "model",
    "--engine",
    "optimum",
    "--device",
    "cpu",
    "--host",
    "127.0.0.1",
    "--port",
    str(arguments.port),
    "--no-model-warmup",
    "--log-level",
    "warning",
]
# It finds a file by its path and hands that to optimum as a name, so the file must lie in the current folder.
os.chdir(folder)
os.execv(command[0], command)
