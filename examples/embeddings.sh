#!/bin/sh
# Vectors of sentences, for search and clustering: the student learns its teacher's vectors. No labels are needed.
set -eu
TEACHER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
OUT=${OUT:-out/examples}/embeddings
DATA=examples/data/reviews.csv
rm -rf "$OUT"

potstill distill "$TEACHER" --task feature-extraction --method embedding --data $DATA --out "$OUT/student" \
    --epochs 5 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill export "$OUT/student" --task feature-extraction --data $DATA --max-loss 0.05 --out "$OUT/student-onnx"
printf '{"text": "I love everything about it."}\n' > "$OUT/question.jsonl"
potstill predict "$OUT/student-onnx" "$OUT/question.jsonl" --precision int8 --out "$OUT/vector.jsonl"
cut -c1-160 "$OUT/vector.jsonl"
