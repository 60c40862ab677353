# %% [markdown]
# # A smaller sentence encoder, in Python
#
# The student learns its teacher's vectors; no labels are needed. Afterwards we search with it.
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
TEACHER = os.environ.get("ENCODER", "sentence-transformers/all-MiniLM-L6-v2")
OUT = Path(os.environ.get("OUT", "out/examples")) / "embeddings-notebook"

with DATA.open(encoding="utf-8", newline="") as file:
    texts = sorted({row["review"] for row in csv.DictReader(file)})
print(f"{len(texts)} texts, such as: {texts[0]}")

# %% [markdown]
# ## Distil
#
# The teacher is asked once, before the training. With your own data take ten thousand texts or more.

# %%
from potstill.config import build_recipe
from potstill.distill import distill

recipe = build_recipe(
    {
        "task": "feature-extraction",
        "teacher": {"model": TEACHER},
        "data": {"name": str(DATA)},
        "distill": {"method": "embedding", "epochs": 5, "batch_size": 16, "learning_rate": 3e-4},
    }
)
report = distill(recipe, OUT / "student", overwrite=True)
print(f"{report['student']['parameters']:,} of {report['teacher']['parameters']:,} parameters")

# %% [markdown]
# ## Export
#
# One vector per text is made in the graph itself.

# %%
from potstill.config import ExportConfig
from potstill.export import export_bundle

manifest = export_bundle(
    str(OUT / "student"),
    OUT / "onnx",
    task="feature-extraction",
    config=ExportConfig(max_loss=0.05, rounds=0),
    calibration=texts,
    overwrite=True,
)
print(", ".join(manifest.models))

# %% [markdown]
# ## Search
#
# `normalize` gives vectors of length 1, so a product of two is their cosine.

# %%
import numpy as np

from potstill.serve import Encoder

encoder = Encoder(OUT / "onnx", precision="int8")
index = np.array(encoder.predict(texts, parameters={"normalize": True}))
question = np.array(encoder.predict("I want my money back.", parameters={"normalize": True}))
for place in np.argsort(index @ question)[::-1][:3]:
    print(f"{index[place] @ question:.3f}  {texts[place]}")
