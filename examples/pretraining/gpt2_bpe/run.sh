#!/usr/bin/env bash
# A language model of the size of GPT-2's smallest on byte pairs, with a multi-head encoding head.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"

HEADS="cascade product sampling softmax"
OWN_HELP="--text FILE   plain text, a paragraph a line, a blank line between documents; it is split into three sets.
              Without it WikiText-103 is downloaded, in its raw form
--vocab V     train V sentencepiece byte pairs on the text (--scale tiny: 2,000). Without it GPT-2's 50,264 are
              downloaded"
read_arguments "$@"
choose_machine

# Neither fairseq nor OpenAI published a command for this. Learning rate, batch, betas, weight decay and
# clipping are those of the 125M-parameter model of "Language Models are Few-Shot Learners" (arXiv 2005.14165,
# table 2.1 and appendix B); samples of 1,024 tokens are GPT-2's. It saw 300 billion tokens; 5,000 updates are
# 20 times through WikiText-103.
if [[ $SCALE == full ]]; then
    UPDATES=${UPDATES:-5000} VALIDATE_EVERY=${VALIDATE_EVERY:-250} LOG_EVERY=20
    TOKENS=1024 CONTEXT=512 WORKERS=1
    batch $((512 * 1024)) 16384
    MODEL=()
    OPTIMIZER=(--optimizer adam --adam-betas '(0.9, 0.95)' --weight-decay 0.1 --clip-norm 1.0
        --lr 6e-4 --lr-scheduler cosine --warmup-updates 715 --warmup-init-lr 1e-07 --min-lr 6e-5)
    ((UPDATES > 715)) || [[ -n ${OPTIMIZER_FLAGS:-} ]] ||
        fail "--updates must be more than the 715 of the warm-up, got $UPDATES"
else
    VOCAB=${VOCAB:-2000} UPDATES=${UPDATES:-200} VALIDATE_EVERY=${VALIDATE_EVERY:-50} LOG_EVERY=25
    TOKENS=128 CONTEXT=64 WORKERS=0
    batch 2048 2048
    MODEL=(--decoder-layers 2 --decoder-attention-heads 2 --decoder-embed-dim 64 --decoder-input-dim 64
        --decoder-output-dim 64 --decoder-ffn-embed-dim 256)
    OPTIMIZER=(--optimizer adam --clip-norm 1.0 --lr 5e-3 --lr-scheduler inverse_sqrt --warmup-updates 50)
fi
CODES=$WORK/codes
PLUGIN=(--arch mhe_transformer_lm_gpt --share-decoder-input-output-embed --criterion mhe_cross_entropy
    --mhe-head)
case $HEAD in
    cascade | sampling) HEAD_WORDS=("${PLUGIN[@]}" "$HEAD" --mhe-codebook "$CODES") ;;
    product) HEAD_WORDS=("${PLUGIN[@]}" product --mhe-mixtures 8 --mhe-codebook "$CODES") ;;
    *) HEAD_WORDS=("${PLUGIN[@]}" "$HEAD") ;;
esac
own_flags

begin_pretraining "vocabulary ${VOCAB:-GPT-2}" "model ${MODEL[*]:-}" "head ${HEAD_WORDS[*]}" \
    "optimizer ${OPTIMIZER[*]}"

wikitext_raw
if [[ -n $VOCAB ]]; then
    prepare --pieces "$VOCAB"
else
    gpt2_files
    prepare --gpt2-bpe "$WORK/gpt2_bpe"
fi
if [[ " ${HEAD_WORDS[*]} " == *" --mhe-codebook $CODES "* ]]; then assign; fi
stage train
train --task language_modeling --tokens-per-sample $TOKENS --sample-break-mode none \
    "${HEAD_WORDS[@]}" ${MODEL[@]+"${MODEL[@]}"} "${OPTIMIZER[@]}" --num-workers $WORKERS
stage evaluate
# With a context window every token but the first ones of the set sees at least that many before it.
scored evaluate "$WORK/evaluate.log" \
    fairseq-eval-lm "$BIN" --user-dir "$USER_DIR" --path "$WORK/checkpoints/checkpoint_best.pt" \
    --gen-subset test --tokens-per-sample $TOKENS --context-window $CONTEXT --max-tokens $((4 * TOKENS)) \
    --softmax-batch 1024 --required-batch-size-multiple 1 "${EVAL_DEVICE[@]}" --log-format simple
report --log "$WORK/evaluate.log" --name "$RECIPE, $HEAD" --data "$BIN"
