#!/bin/sh
# Trains the model in the box anew (docs/model-card.md), or another one on other texts:
#
#     sh docs/train-the-box.sh TEXTS HELD_OUT FOLDER
#
# TEXTS and HELD_OUT are folders of .txt files; into FOLDER come the vocabulary, the run and the box.
# It may be stopped at any time: started again, it goes on where it was. On two cores with AMX it takes
# an hour and a half, without it some seven hours.
set -eu
texts=$1 held_out=$2 folder=$3

if [ ! -d "$folder/words" ]; then
    mkdir -p "$folder"
    minigpt train-tokenizer "$texts"/*.txt --vocab-size 4096 --out "$folder/words"
fi
if [ -d "$folder/run" ]; then
    minigpt train --resume "$folder/run"
else
    # one of the held-out books is enough to watch by; all of them judge the result
    minigpt train "$texts"/*.txt --held-out "$held_out/the_cuckoo_clock.txt" \
        --tokenizer "$folder/words" --out "$folder/run" \
        --n-layer 6 --n-head 4 --n-embd 256 --context 512 \
        --batch-size 8 --lr 2e-3 --min-lr 0 --warmup 200 --decay linear --steps 12000 --seed 1 \
        --eval-every 500 --save-every 100
fi
minigpt convert "$folder/run" "$folder/box" --dtype int8
minigpt eval -m "$folder/box" "$held_out"/*.txt
