#!/usr/bin/env bash
# WMT14 English-German with a base or big transformer and a multi-head encoding head.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"

SRC=en TGT=de SIZES="base big"
OWN_USAGE="[--size base|big] [--tokenize none|moses]"
OWN_HELP="--size SIZE   of the transformer (default: base)
--tokenize T  moses: split words and punctuation as Moses does, before pieces (default: none)"
read_arguments "$@"
choose_machine

# base: 25,000 tokens an update for 100,000 updates, dropout 0.1, the mean of the last 5 checkpoints, ten minutes of
# 0.4 s an update apart ("Attention Is All You Need", sections 5.1, 5.2, 5.4 and 6.1). big: fairseq's command
# (examples/scaling_nmt/README.md), --max-tokens 3584 on 8 GPUs, dropout 0.3; 300,000 updates and 20 checkpoints
# are Vaswani et al.'s again, that they are 1,000 updates apart was chosen here.
if [[ $SCALE == tiny ]]; then
    tiny_settings
else
    VOCAB=${VOCAB:-32768} LOG_EVERY=100 WORKERS=2
    if [[ $SIZE == base ]]; then
        UPDATES=${UPDATES:-100000} VALIDATE_EVERY=${VALIDATE_EVERY:-1500} AVERAGE=${AVERAGE:-5}
        batch "${BATCH_TOKENS:-25000}" 3584 "$LONGEST"
        transformer_base 0.1
    else
        UPDATES=${UPDATES:-300000} VALIDATE_EVERY=${VALIDATE_EVERY:-1000} AVERAGE=${AVERAGE:-20}
        batch "${BATCH_TOKENS:-$((8 * 3584))}" 3584 "$LONGEST"
        transformer_big 0.3
    fi
fi
settle_model
# Raw text in pieces, not words of Moses: what comes out is text again, which sacrebleu scores as it is.
# Lengths and ratio are those of fairseq's prepare-wmt14en2de.sh.
begin_translation --max-pieces 250 --ratio 1.5 --sample 5000000

prepare
stage train
train_model --task mhe_translation "${PAIR[@]}" --num-workers "$WORKERS"
stage evaluate
translate --beam 4 --lenpen 0.6
evaluate
