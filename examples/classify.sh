#!/bin/sh
# Few labels and many texts: 150 labelled reviews, 450 that nobody has read.
set -eu
ENCODER=${ENCODER:-sentence-transformers/all-MiniLM-L6-v2}
OUT=${OUT:-out/examples}/classify
TRAIN="--epochs 8 --set distill.batch_size=16 --set distill.learning_rate=3e-4"
rm -rf "$OUT"

# A teacher from the labels that there are.
potstill finetune "$ENCODER" --data examples/data/few.csv --out "$OUT/teacher" $TRAIN
# The student also learns what its teacher says of the other texts. --controls shows what that was worth.
potstill distill "$OUT/teacher" --data examples/data/few.csv --unlabelled examples/data/texts.txt --controls --out "$OUT/student" $TRAIN
# fp32 and int8, fitted to these texts and judged on them.
potstill export "$OUT/student" --data examples/data/few.csv --max-loss 0.1 --out "$OUT/student-onnx"
# The int8 file's score, label by label.
potstill evaluate "$OUT/student-onnx" --precision int8 --data examples/data/few.csv
