#!/usr/bin/env bash
# IWSLT14 German-English, lowercased TED talks, with fairseq's small transformer and a multi-head encoding head.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"

SRC=de TGT=en
read_arguments "$@"
choose_machine

# fairseq's command (examples/translation/README.md): one GPU with --max-tokens 4096. It names no end and
# translates with the checkpoint of the best validation BLEU. 50,000 updates and the checkpoint of the best
# validation loss were chosen here. Its two dictionaries are one here, and all embeddings are shared, as in the
# other recipes.
if [[ $SCALE == tiny ]]; then
    tiny_settings
else
    VOCAB=${VOCAB:-10000} UPDATES=${UPDATES:-50000} VALIDATE_EVERY=${VALIDATE_EVERY:-1000} LOG_EVERY=100
    AVERAGE=${AVERAGE:-0} WORKERS=2
    batch "${BATCH_TOKENS:-4096}" 4096 "$LONGEST"
    ARCH=mhe_transformer_iwslt_de_en
    MODEL=(--share-all-embeddings --dropout 0.3)
    OPTIMIZER=(--optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 --weight-decay 0.0001
        --lr "${LR:-5e-4}" --lr-scheduler inverse_sqrt --warmup-updates 4000)
fi
settle_model
# The standard setup: words of Moses, at most 175 a sentence, lowercased, every 23rd pair for validation (fairseq's
# prepare-iwslt14.sh).
begin_translation --tokenize moses --normalize apostrophe --lowercase --max-words 175 --max-pieces 0 --ratio 1.5 \
    --valid-every 23

prepare
stage train
train_model --task mhe_translation "${PAIR[@]}" --num-workers "$WORKERS"
stage evaluate
translate --beam 5
evaluate --lowercase --detokenize "$TGT"
# fairseq's own BLEU, of words and lowercased: what papers report for this set.
grep '^Generate' "$WORK/translations/generate-test.txt"
