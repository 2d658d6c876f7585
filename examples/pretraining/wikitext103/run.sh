#!/usr/bin/env bash
# A word-level language model of WikiText-103, V = 267,744, with the hyperparameters fairseq publishes for
# adaptive inputs, and a multi-head encoding head in place of the adaptive softmax.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"

HEADS="cascade product sampling softmax adaptive"
OWN_HELP="--text FILE   words separated by spaces, split into three sets; without it WikiText-103 is downloaded
--vocab V     words of the dictionary
--head adaptive  fairseq's own model with its adaptive softmax"
read_arguments "$@"
choose_machine

# fairseq's command (examples/language_model/README.adaptive_inputs.md) says --max-tokens 3072 --update-freq 3
# and no number of GPUs. With 8, as assumed here, an update has 73,728 tokens.
if [[ $SCALE == full ]]; then
    VOCAB=${VOCAB:-267744} UPDATES=${UPDATES:-286000} VALIDATE_EVERY=${VALIDATE_EVERY:-2000} LOG_EVERY=100
    TOKENS=3072 CONTEXT=2560 WORKERS=1
    batch $((8 * 3 * 3072)) 3072
    MODEL=()
    ADAPTIVE=()
    CASCADE=(--mhe-bottleneck 256)
    OPTIMIZER=(--optimizer nag --lr 1.0 --clip-norm 0.1 --lr-scheduler cosine --t-mult 2
        --lr-period-updates 270000 --lr-shrink 0.75 --warmup-updates 16000 --warmup-init-lr 1e-07
        --stop-min-lr 1e-09 --min-lr 0.0001)
else
    VOCAB=${VOCAB:-2000} UPDATES=${UPDATES:-200} VALIDATE_EVERY=${VALIDATE_EVERY:-50} LOG_EVERY=25
    TOKENS=128 CONTEXT=64 WORKERS=0
    batch 2048 2048
    MODEL=(--decoder-layers 2 --decoder-attention-heads 2 --decoder-embed-dim 64 --decoder-input-dim 64
        --decoder-output-dim 64 --decoder-ffn-embed-dim 128 --dropout 0.1
        --adaptive-input-cutoff "$((VOCAB / 4)),$((VOCAB / 2))")
    ADAPTIVE=(--adaptive-softmax-cutoff "$((VOCAB / 4)),$((VOCAB / 2))")
    CASCADE=(--mhe-bottleneck 32)
    OPTIMIZER=(--optimizer adam --lr 5e-3 --clip-norm 1.0 --lr-scheduler inverse_sqrt --warmup-updates 50)
fi
CODES=$WORK/codes
PLUGIN=(--arch mhe_transformer_lm_wiki103 --criterion mhe_cross_entropy --mhe-head)
case $HEAD in
    adaptive)
        HEAD_WORDS=(--arch transformer_lm_wiki103 --criterion adaptive_loss ${ADAPTIVE[@]+"${ADAPTIVE[@]}"})
        ;;
    cascade) HEAD_WORDS=("${PLUGIN[@]}" cascade "${CASCADE[@]}" --mhe-codebook "$CODES") ;;
    product) HEAD_WORDS=("${PLUGIN[@]}" product --mhe-mixtures 8 --mhe-codebook "$CODES") ;;
    sampling) HEAD_WORDS=("${PLUGIN[@]}" sampling --mhe-codebook "$CODES") ;;
    *) HEAD_WORDS=("${PLUGIN[@]}" "$HEAD") ;;
esac
own_flags

begin_pretraining "vocabulary $VOCAB" "model ${MODEL[*]:-}" "head ${HEAD_WORDS[*]}" "optimizer ${OPTIMIZER[*]}"

if ((!${#SOURCE[@]})); then
    # The author's own mirror; the address in the paper is gone. The checksum is torchtext's
    # (datasets/wikitext103.py), for the file of that address. It was not downloaded for this recipe, so if
    # the mirror's file should differ, download.py says so and stops. (mlx-data has its SHA-256, too:
    # 242ba0f20b329cfd...)
    fetch download "${TEXT_URL:-https://wikitext.smerity.com/wikitext-103-v1.zip}" \
        "$WORK/download/wikitext-103-v1.zip" --md5 "${TEXT_MD5:-9ddaacaf6af0710eda8c456decff7832}"
    unpack "$WORK/download/wikitext-103-v1.zip" "$WORK/download/wikitext"
    folder=$WORK/download/wikitext/wikitext-103
    SOURCE=(--train "$folder/wiki.train.tokens" --valid "$folder/wiki.valid.tokens"
        --test "$folder/wiki.test.tokens")
fi
prepare --words "$VOCAB"
if [[ " ${HEAD_WORDS[*]} " == *" --mhe-codebook $CODES "* ]]; then assign; fi
stage train
# legacy_ddp: a band of the adaptive input has no gradient in a batch without its words, which torch's DDP
# refuses.
train --task language_modeling --tokens-per-sample $TOKENS --sample-break-mode none \
    --skip-invalid-size-inputs-valid-test "${HEAD_WORDS[@]}" ${MODEL[@]+"${MODEL[@]}"} "${OPTIMIZER[@]}" \
    --ddp-backend legacy_ddp --num-workers $WORKERS
stage evaluate
# With a context window every token but the first ones of the set sees that many before it, as is usual for
# WikiText-103; a softmax is made for 1,024 tokens at a time.
scored evaluate "$WORK/evaluate.log" \
    fairseq-eval-lm "$BIN" --user-dir "$USER_DIR" --path "$WORK/checkpoints/checkpoint_best.pt" \
    --gen-subset test --tokens-per-sample $TOKENS --context-window $CONTEXT --max-tokens $TOKENS \
    --softmax-batch 1024 --required-batch-size-multiple 1 "${EVAL_DEVICE[@]}" --log-format simple
report --log "$WORK/evaluate.log" --name "$RECIPE, $HEAD" --data "$BIN"
