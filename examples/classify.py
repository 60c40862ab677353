# %% [markdown]
# # From a csv to a small model, in Python
#
# Train a teacher on labelled reviews, make a student with half of its layers, export it to int8, and ask it.
# [The first hour](../docs/first-hour.md) does the same from a shell.
#
# `pip install "potstill[all]"`; the data lies beside this file.
#
# The outputs below are those of `ENCODER=out/examples/encoder`, the tiny one with which `make examples` runs without
# a download. A real one does better.

# %%
import csv
import os
from pathlib import Path

HERE = Path("examples") if Path("examples").is_dir() else Path()
DATA = HERE / "data" / "reviews.csv"
ENCODER = os.environ.get("ENCODER", "sentence-transformers/all-MiniLM-L6-v2")
OUT = Path(os.environ.get("OUT", "out/examples")) / "classify-notebook"

with DATA.open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
rows[0]

# %% [markdown]
# ## A teacher
#
# A recipe says everything about a training; its keys are the [settings](../docs/settings.md). The columns `review` and
# `stars` are found by their names. A tenth of the texts is held out to score on.

# %%
from potstill.config import build_recipe
from potstill.distill import finetune

# Few rows: small batches, a high rate, several passes.
training = {"epochs": 6, "batch_size": 16, "learning_rate": 3e-4}
recipe = build_recipe({"teacher": {"model": ENCODER}, "data": {"name": str(DATA)}, "distill": training})
taught = finetune(recipe, OUT / "teacher", overwrite=True)
print(f"accuracy {taught['teacher']['scores']['accuracy']:.3f}")

# %% [markdown]
# ## A student
#
# It keeps half of the layers, and learns from the labels and from what the teacher answers.

# %%
from potstill.distill import distill

settings = {f"distill.{key}": value for key, value in training.items()}
report = distill(str(OUT / "teacher"), OUT / "student", data=str(DATA), settings=settings, overwrite=True)
for who in ("teacher", "student"):
    print(f"{who}: accuracy {report[who]['scores']['accuracy']:.3f}, {report[who]['parameters']:,} parameters")

# %% [markdown]
# ## int8
#
# int8 is fitted to some of the texts and held against fp32 on the others. If it answers too differently, nothing is
# written.

# %%
from potstill.config import ExportConfig
from potstill.export import export_bundle

texts = [row["review"] for row in rows]
config = ExportConfig(max_loss=0.05, rounds=0)
manifest = export_bundle(str(OUT / "student"), OUT / "onnx", config=config, calibration=texts, overwrite=True)
for name in manifest.models:
    file = OUT / "onnx" / manifest.models[name].file
    print(f"{name}: {file.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ## Ask it
#
# `potstill.serve` needs no PyTorch: this cell runs where `pip install "potstill[serve]"` is all there is.

# %%
from potstill.serve import Encoder

encoder = Encoder(OUT / "onnx", precision="int8")
for text in ("The lamp was a present. The best one I ever had.", "This is my second tent. It broke on the first day."):
    print(text, encoder.predict(text, top_k=1))
