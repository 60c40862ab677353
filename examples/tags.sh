#!/bin/sh
# A tag for each word: persons, places and companies.
set -eu
ENCODER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
OUT=${OUT:-out/examples}/tags
DATA=examples/data/tags.jsonl
rm -rf "$OUT"

potstill finetune "$ENCODER" --data $DATA --out "$OUT/teacher" \
    --epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill distill "$OUT/teacher" --data $DATA --out "$OUT/student" \
    --epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill export "$OUT/student" --data $DATA --max-loss 0.05 --out "$OUT/student-onnx"
potstill evaluate "$OUT/student-onnx" --precision int8 --data $DATA
