#!/bin/sh
# A general student from running text, as DistilBERT was made: no labels, and no task yet. A few steps only.
set -eu
TEACHER=${ENCODER:-google-bert/bert-base-uncased}
OUT=${OUT:-out/examples}/running-text
DATA=examples/data/texts.txt
rm -rf "$OUT"

potstill distill "$TEACHER" --task fill-mask --method distilbert --data $DATA --out "$OUT/student" \
    --set distill.max_steps=60 --set distill.batch_size=16 --set distill.gradient_accumulation=1
potstill evaluate "$OUT/student" --task fill-mask --data examples/data/reviews.csv
# Now it is an encoder like any other: fine-tune it on labels.
potstill finetune "$OUT/student" --task text-classification --data examples/data/reviews.csv --out "$OUT/classifier" \
    --epochs 6 --set distill.batch_size=16 --set distill.learning_rate=3e-4
