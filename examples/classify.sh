#!/bin/sh
# Few labels and many texts: 300 labelled reviews, and 300 texts without a label.
set -eu
ENCODER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
OUT=${OUT:-out/examples}/classify
DATA=examples/data/few.csv
rm -rf "$OUT"

# A teacher from the labels that there are.
potstill finetune "$ENCODER" --data $DATA --out "$OUT/teacher" \
    --epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4
# The student also learns what its teacher says of the other texts. --controls shows what that was worth.
potstill distill "$OUT/teacher" --data $DATA --unlabelled examples/data/texts.txt --controls --out "$OUT/student" \
    --epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4
# fp32 and int8, fitted to these texts and judged on them.
potstill export "$OUT/student" --data $DATA --max-loss 0.1 --out "$OUT/student-onnx"
# The int8 file's score, label by label.
potstill evaluate "$OUT/student-onnx" --precision int8 --data $DATA
