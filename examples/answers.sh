#!/bin/sh
# Questions about a text: the answer is a part of it. SQuAD's own files work as they are.
set -eu
ENCODER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
OUT=${OUT:-out/examples}/answers
DATA=examples/data/answers.jsonl
rm -rf "$OUT"

potstill finetune "$ENCODER" --task question-answering --data $DATA --out "$OUT/teacher" \
    --epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill distill "$OUT/teacher" --data $DATA --out "$OUT/student" \
    --epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill export "$OUT/student" --data $DATA --max-loss 0.05 --out "$OUT/student-onnx"
potstill predict "$OUT/student-onnx" $DATA --precision int8 --out "$OUT/answers.jsonl"
head -2 "$OUT/answers.jsonl"
