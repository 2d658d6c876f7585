#!/usr/bin/env bash
# OPUS-100: English to and from 99 languages in one transformer with 262,144 pieces and a multi-head encoding head.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"

SRC=src TGT=tgt MANY=1
OWN_USAGE="[--languages L,L,...]"
OWN_HELP="--languages L,L  languages to pair with English, such as de,fr (default: all 99)"
OWN_VARIABLES="TEMPERATURE (5): repeats small languages; 1: none."
read_arguments "$@"
choose_machine

# The scripts of the corpus' authors (bzhangGo/zero, scripts/data, for arXiv 2004.11867) train a transformer of the
# base's size with dropout 0.1, 4,000 updates of warm-up and 64,000 pieces, and repeat no language. The vocabulary
# of 262,144, the temperature, the batch and the number of updates were chosen here.
TEMPERATURE=${TEMPERATURE:-5}
if [[ $SCALE == tiny ]]; then
    tiny_settings
else
    VOCAB=${VOCAB:-262144} UPDATES=${UPDATES:-200000} VALIDATE_EVERY=${VALIDATE_EVERY:-2000} LOG_EVERY=100
    AVERAGE=${AVERAGE:-5} WORKERS=2
    batch "${BATCH_TOKENS:-131072}" 8192 "$LONGEST"
    transformer_base 0.1
    # Nobody looked how long the longest of 371,000 test sentences is; positions are sinusoids and cost nothing.
    MODEL+=(--max-source-positions 4096 --max-target-positions 4096)
fi
settle_model
# Pieces of ten million sentences. Languages differ in how many pieces a sentence has, so that only a ratio of 3
# tells that something is wrong.
begin_translation --tags --max-pieces 250 --ratio 3 --sample 10000000

prepare --temperature "$TEMPERATURE"
stage train
train --task mhe_translation "${PAIR[@]}" "${HEAD_WORDS[@]}" "${MODEL[@]}" "${OPTIMIZER[@]}" \
    --num-workers "$WORKERS"
stage evaluate
translate --beam 4 --lenpen 0.6
tags=$TEXT/test.tags
[[ -f $tags ]] || tags=$tags.xz
evaluate --tags "$tags"
