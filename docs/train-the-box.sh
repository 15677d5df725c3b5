#!/bin/sh
# Trains the bundled model from scratch (docs/model-card.md), or a model like it on other texts:
#
#     sh docs/train-the-box.sh TEXTS VALIDATION FOLDER
#
# TEXTS and VALIDATION are folders of .txt files. FOLDER receives the tokenizer (vocabulary), the
# run, and the int8 model (box). The script may be stopped at any time and run again: it resumes. It
# takes an hour and a half on two cores with AMX, some seven hours on two cores without.
set -eu
texts=$1 validation=$2 folder=$3

if [ ! -d "$folder/vocabulary" ]; then
    mkdir -p "$folder"
    minigpt train-tokenizer "$texts"/*.txt --vocab-size 4096 --out "$folder/vocabulary"
fi
if [ -d "$folder/run" ]; then
    minigpt train --resume "$folder/run"
else
    # One validation book is enough to watch the training; all of them score the result.
    minigpt train "$texts"/*.txt --held-out "$validation/the_cuckoo_clock.txt" \
        --tokenizer "$folder/vocabulary" --out "$folder/run" \
        --n-layer 6 --n-head 4 --n-embd 256 --context 512 \
        --batch-size 8 --lr 2e-3 --min-lr 0 --warmup 200 --decay linear --steps 12000 --seed 1 \
        --eval-every 500 --save-every 100
fi
minigpt convert "$folder/run" "$folder/box" --dtype int8
minigpt eval -m "$folder/box" "$validation"/*.txt
