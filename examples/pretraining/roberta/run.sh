#!/usr/bin/env bash
# A masked language model of RoBERTa's base size, with a multi-head encoding head. With --labelled it is then
# fine-tuned to classify sentences.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"

HEADS="sampling cascade product softmax"
OWN_USAGE="[--labelled DIR]" OWN_VARIABLES=FINETUNE_FLAGS
OWN_HELP="--text FILE   plain text, a paragraph a line, a blank line between documents; it is split into three sets.
              Without it WikiText-103 is downloaded, in its raw form
--labelled DIR  {train,valid,test}.tsv, a label, a tab and a text a line, to fine-tune on
--vocab V     sentencepiece byte pairs trained on the text, including <mask> (default: 50,264; tiny: 2,000)"
read_arguments "$@"
choose_machine

# fairseq's examples/roberta/config/pretraining/base.yaml: 16 samples of 512 tokens on each of 8 GPUs, 16
# times an update. Its sample_break_mode, complete, keeps lines whole, and loses those of more than 512
# tokens: here samples go on where the last one ended.
if [[ $SCALE == full ]]; then
    VOCAB=${VOCAB:-50264} UPDATES=${UPDATES:-125000} VALIDATE_EVERY=${VALIDATE_EVERY:-1000} LOG_EVERY=200
    TOKENS=512 WORKERS=1
    batch $((8 * 16 * 16 * 512)) $((16 * 512))
    MODEL=()
    OPTIMIZER=(--optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-06 --weight-decay 0.01
        --clip-norm 0.0 --lr 5e-4 --lr-scheduler polynomial_decay --warmup-updates 10000)
    # fairseq's examples/roberta/README.glue.md, on one GPU; its schedule would need the number of updates.
    FINETUNE=(--max-epoch 10 --batch-size 16 --lr 1e-5 --clip-norm 0.0 --weight-decay 0.1 --dropout 0.1
        --attention-dropout 0.1)
else
    VOCAB=${VOCAB:-2000} UPDATES=${UPDATES:-200} VALIDATE_EVERY=${VALIDATE_EVERY:-50} LOG_EVERY=25
    TOKENS=128 WORKERS=0
    batch 4096 4096
    MODEL=(--encoder-layers 2 --encoder-attention-heads 2 --encoder-embed-dim 64 --encoder-ffn-embed-dim 256)
    OPTIMIZER=(--optimizer adam --clip-norm 1.0 --lr 5e-3 --lr-scheduler polynomial_decay --warmup-updates 50)
    FINETUNE=(--max-epoch 2 --batch-size 32 --lr 1e-3 --clip-norm 1.0)
fi
CODES=$WORK/codes
PLUGIN=(--arch mhe_roberta_base --criterion mhe_masked_lm --mhe-head)
case $HEAD in
    cascade | product | sampling) HEAD_WORDS=("${PLUGIN[@]}" "$HEAD" --mhe-codebook "$CODES") ;;
    *) HEAD_WORDS=("${PLUGIN[@]}" "$HEAD") ;;
esac
own_flags
in_place FINETUNE_FLAGS FINETUNE

begin_pretraining "vocabulary $VOCAB" "model ${MODEL[*]:-}" "head ${HEAD_WORDS[*]}" "optimizer ${OPTIMIZER[*]}"

wikitext_raw
# The task would add <mask> to the dictionary by itself, behind the words that make its size a multiple of 8.
prepare --pieces "$VOCAB" --add-symbol '<mask>'
if [[ " ${HEAD_WORDS[*]} " == *" --mhe-codebook $CODES "* ]]; then assign; fi
stage train
train --task masked_lm --tokens-per-sample $TOKENS --max-positions $TOKENS --sample-break-mode none \
    "${HEAD_WORDS[@]}" ${MODEL[@]+"${MODEL[@]}"} "${OPTIMIZER[@]}" --total-num-update "$UPDATES" \
    --num-workers $WORKERS
stage evaluate
scored evaluate "$WORK/evaluate.log" \
    fairseq-validate "$BIN" --user-dir "$USER_DIR" --task masked_lm \
    --path "$WORK/checkpoints/checkpoint_best.pt" --valid-subset test --max-tokens $((16 * TOKENS)) \
    --required-batch-size-multiple 1 "${EVAL_DEVICE[@]}" --num-workers 0 --log-format simple
report --log "$WORK/evaluate.log" --name "$RECIPE, $HEAD" --data "$BIN"

if [[ -n $LABELLED ]]; then
    labelled=$WORK/labelled
    begin prepare-labelled "$labelled/label" "$LABELLED"
    run python scripts/data/prepare_labelled.py --source "$LABELLED" --out "$labelled" --dict "$BIN/dict.txt" \
        --pieces "$WORK/data/spm.model"
    end
    # Labels are all that the dictionary of labels has, but for what fairseq-preprocess rounds up with.
    classes=$(grep -vc '^madeupword' "$labelled/label/dict.txt")
    begin finetune "$WORK/finetuned/checkpoint_best.pt" "$UPDATES ${FINETUNE[*]}"
    # What was begun from a model trained for fewer updates begins anew.
    if ((!skip)) && [[ ! -e $WORK/finetuned/of || $(<"$WORK/finetuned/of") != "$key" ]]; then
        rm -rf "$WORK/finetuned"
        mkdir "$WORK/finetuned"
        echo "$key" >"$WORK/finetuned/of"
    fi
    continue_training "$WORK/finetuned"
    ONE=()
    if ((GPUS > 1)); then ONE=(--distributed-world-size 1); fi
    # --finetune-from-model and not --restore-file: another run then continues with this training.
    run fairseq-train "$labelled" --user-dir "$USER_DIR" --task sentence_prediction \
        --criterion sentence_prediction --arch mhe_roberta_base ${MODEL[@]+"${MODEL[@]}"} \
        --finetune-from-model "$WORK/checkpoints/checkpoint_best.pt" \
        --num-classes "$classes" --classification-head-name classes --init-token 0 --separator-token 2 \
        --max-positions $TOKENS --shorten-method truncate \
        --optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-06 --lr-scheduler inverse_sqrt \
        --warmup-updates 100 "${FINETUNE[@]}" \
        --required-batch-size-multiple 1 --update-epoch-batch-itr True --seed "$SEED" \
        "${DEVICE[@]}" ${ONE[@]+"${ONE[@]}"} \
        --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric --no-epoch-checkpoints \
        --save-dir "$WORK/finetuned" --num-workers $WORKERS --log-file "$WORK/finetune.log" \
        --log-format "$LOG_FORMAT" --log-interval "${LOG_INTERVAL:-$LOG_EVERY}"
    end
    scored classify "$WORK/classify.log" \
        fairseq-validate "$labelled" --user-dir "$USER_DIR" --task sentence_prediction \
        --criterion sentence_prediction --classification-head-name classes --num-classes "$classes" \
        --path "$WORK/finetuned/checkpoint_best.pt" --valid-subset test --batch-size 32 \
        --required-batch-size-multiple 1 "${EVAL_DEVICE[@]}" --num-workers 0 --log-format simple
    report --log "$WORK/classify.log" --name "$RECIPE, $HEAD, fine-tuned" --data "$labelled/input0"
fi
