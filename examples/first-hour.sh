#!/bin/sh
# Your first hour: from a csv to a server that answers. Run it in the repository's root; docs/first-hour.md explains it.
set -eu
ENCODER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
OUT=${OUT:-out/examples}/first-hour
DATA=examples/data/reviews.csv
rm -rf "$OUT"

# --8<-- [start:finetune]
potstill finetune "$ENCODER" --data $DATA --out "$OUT/teacher" \
    --epochs 6 --set distill.batch_size=16 --set distill.learning_rate=3e-4
# --8<-- [end:finetune]

# --8<-- [start:distill]
potstill distill "$OUT/teacher" --data $DATA --out "$OUT/student" \
    --epochs 6 --set distill.batch_size=16 --set distill.learning_rate=3e-4
# --8<-- [end:distill]

# --8<-- [start:export]
potstill export "$OUT/teacher" --data $DATA --out "$OUT/teacher-onnx" --precision fp32
potstill export "$OUT/student" --data $DATA --out "$OUT/student-onnx" --max-loss 0.05
# --8<-- [end:export]

# --8<-- [start:bench]
potstill bench teacher="$OUT/teacher-onnx" student="$OUT/student-onnx" --data $DATA \
    --quick --budget 2m --out "$OUT/report"
# --8<-- [end:bench]

# --8<-- [start:predict]
potstill predict "$OUT/student-onnx" $DATA --precision int8 --out "$OUT/answers.csv"
head -3 "$OUT/answers.csv"
# --8<-- [end:predict]

# --8<-- [start:serve]
potstill serve "$OUT/student-onnx" --precision int8 --port 8000 &
SERVER=$!
trap 'kill $SERVER' EXIT
until curl --silent --fail --output /dev/null localhost:8000/health/ready; do sleep 1; done
curl --silent --fail localhost:8000/predict -H 'Content-Type: application/json' \
    -d '{"inputs": "The best one I ever had."}'
# --8<-- [end:serve]
