"""A classifier behind FastAPI as most people write it: a transformers pipeline over optimum's ONNX model.

python fastapi_pipeline.py --bundle BUNDLE --port 8000 --threads 2
"""

import argparse
from pathlib import Path

import onnxruntime
import uvicorn
from fastapi import FastAPI
from optimum.onnxruntime import ORTModelForSequenceClassification
from pydantic import BaseModel
from transformers import AutoTokenizer, pipeline

parser = argparse.ArgumentParser()
parser.add_argument("--bundle", required=True)
parser.add_argument("--file", default="model.onnx")
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
arguments = parser.parse_args()

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = arguments.threads
model = ORTModelForSequenceClassification.from_pretrained(
    Path(arguments.bundle), subfolder="onnx", file_name=arguments.file, session_options=options
)
classify = pipeline(
    "text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(arguments.bundle), top_k=None
)
app = FastAPI()


class Request(BaseModel):
    inputs: str


@app.get("/health/ready")
def ready() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/predict")
def predict(request: Request) -> list[dict[str, str | float]]:
    return classify([request.inputs], truncation=True)[0]


uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False)
