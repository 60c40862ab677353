#!/bin/sh
# Two texts, one label: does the second follow from the first? The columns premise and hypothesis are found by name.
set -eu
ENCODER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
OUT=${OUT:-out/examples}/pairs
DATA=examples/data/pairs.csv
rm -rf "$OUT"

potstill finetune "$ENCODER" --data $DATA --out "$OUT/teacher" \
    --epochs 6 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill distill "$OUT/teacher" --data $DATA --out "$OUT/student" \
    --epochs 6 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill export "$OUT/student" --data $DATA --max-loss 0.05 --out "$OUT/student-onnx"
potstill predict "$OUT/student-onnx" $DATA --precision int8 --out "$OUT/answers.jsonl"
head -2 "$OUT/answers.jsonl"
