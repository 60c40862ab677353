#!/bin/sh
# A number for each text: how urgent is a ticket, from 0 to 1? Numbers with a fraction are amounts, not labels.
set -eu
ENCODER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
OUT=${OUT:-out/examples}/score
DATA=examples/data/tickets.csv
rm -rf "$OUT"

# `metric=mse` keeps the checkpoint whose numbers are nearest; the usual one asks whether large ones are large.
potstill finetune "$ENCODER" --problem-type regression --data $DATA --out "$OUT/teacher" \
    --set metric=mse --epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill distill "$OUT/teacher" --data $DATA --out "$OUT/student" \
    --set metric=mse --epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4
potstill export "$OUT/student" --data $DATA --out "$OUT/student-onnx"
potstill predict "$OUT/student-onnx" $DATA --precision int8 --out "$OUT/answers.csv"
head -3 "$OUT/answers.csv"
