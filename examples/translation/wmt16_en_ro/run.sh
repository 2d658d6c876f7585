#!/usr/bin/env bash
# WMT16 English-Romanian with a base or big transformer and a multi-head encoding head.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"

SRC=en TGT=ro SIZES="base big"
OWN_USAGE="[--size base|big] [--tokenize none|moses]"
OWN_HELP="--size SIZE   of the transformer (default: base)
--tokenize T  moses: split words and punctuation as Moses does, before pieces (default: none)"
read_arguments "$@"
choose_machine

# fairseq's own command for this pair fine-tunes mBART (examples/mbart). Models and learning rates are those of
# "Attention Is All You Need"; dropout 0.3 is that of fairseq's command for IWSLT14; 32,768 tokens an update, the
# number of updates, the checkpoints and the beam were chosen here.
if [[ $SCALE == tiny ]]; then
    tiny_settings
else
    VOCAB=${VOCAB:-32768} UPDATES=${UPDATES:-50000} VALIDATE_EVERY=${VALIDATE_EVERY:-1000} LOG_EVERY=100
    AVERAGE=${AVERAGE:-5} WORKERS=2
    batch "${BATCH_TOKENS:-32768}" 4096 "$LONGEST"
    if [[ $SIZE == base ]]; then transformer_base 0.3; else transformer_big 0.3; fi
fi
settle_model
# Raw text in pieces, as for WMT14. Romanian's s and t with a comma below are often typed with a cedilla: training
# and validation text gets commas, and the test set is scored as it is and with commas.
begin_translation --normalize romanian --max-pieces 250 --ratio 1.5

prepare
stage train
train_model --task mhe_translation "${PAIR[@]}" --num-workers "$WORKERS"
stage evaluate
translate --beam 5
evaluate --normalize romanian
