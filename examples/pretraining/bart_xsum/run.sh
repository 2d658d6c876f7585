#!/usr/bin/env bash
# A BART with a multi-head encoding head, fine-tuned to summarise: XSum's layout of files.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"
source "$(dirname "$0")/../denoising.sh"

HEADS="cascade product sampling softmax" PAIRED=1 SRC=source TGT=target
TEXT_USAGE="--pair DIR [--mono DIR] [--src S] [--tgt S]" OWN_VARIABLES="FINETUNE_FLAGS, GENERATE_TOKENS"
OWN_HELP="--pair DIR    {train,valid,test}.{source,target}, plain or .xz, a text and its summary a line, to fine-tune on
--mono DIR    {train,valid}.source, to pretrain on (default: the sources of the pair)
--src, --tgt  ends of the files' names (default: source, target)
--vocab V     sentencepiece byte pairs trained on the text (default: 50,264; tiny: 2,000)"
read_arguments "$@"
choose_machine

# The noise is the paper's (arXiv 1910.13461); the fine-tuning that of fairseq's examples/bart for XSum, 20,000 updates
# of 8 GPUs with 2,048 tokens each, 4 times. For one GPU give FINETUNE_FLAGS.
NOISE=(--mask 0.3 --mask-length span-poisson --poisson-lambda 3.5 --replace-length 1 --rotate 0 --permute-sentences 1)
if [[ $SCALE == full ]]; then
    VOCAB=${VOCAB:-50264} UPDATES=${UPDATES:-500000} VALIDATE_EVERY=${VALIDATE_EVERY:-5000} LOG_EVERY=200
    TOKENS=1024 WORKERS=1 ARCH=mhe_bart_large
    batch $((2000 * 512)) 2048
    MODEL=()
    OPTIMIZER=(--optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-06 --weight-decay 0.01 --clip-norm 0.1
        --lr 4e-4 --lr-scheduler polynomial_decay --warmup-updates 10000)
    FINETUNE=(--max-update 20000 --total-num-update 20000 --warmup-updates 500 --max-tokens 2048 --update-freq 4
        --lr 3e-5 --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 --clip-norm 0.1 --label-smoothing 0.1)
    SEARCH=(--beam 6 --lenpen 1.0 --max-len-b 60 --min-len 10)
else
    VOCAB=${VOCAB:-2000} UPDATES=${UPDATES:-200} VALIDATE_EVERY=${VALIDATE_EVERY:-50} LOG_EVERY=25
    TOKENS=128 WORKERS=0 ARCH=mhe_bart_base
    batch 2048 2048
    MODEL=(--encoder-layers 2 --decoder-layers 2 --encoder-attention-heads 2 --decoder-attention-heads 2
        --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 128 --decoder-ffn-embed-dim 128)
    OPTIMIZER=(--optimizer adam --clip-norm 1.0 --lr 3e-3 --lr-scheduler polynomial_decay --warmup-updates 50)
    FINETUNE=(--max-update 200 --total-num-update 200 --warmup-updates 20 --max-tokens 2048 --lr 3e-3
        --label-smoothing 0.1)
    SEARCH=(--beam 4 --max-len-b 60)
fi
# A text longer than this is cut.
MODEL+=(--max-source-positions $TOKENS --max-target-positions $TOKENS)
denoising_head "$ARCH"
LANGS=$SRC TUNING=(--task mhe_translation --truncate-source) ADDED=("<mask>")
begin_denoising "model ${MODEL[*]}" "head ${HEAD_WORDS[*]}" "optimizer ${OPTIMIZER[*]}"

prepare_denoising
stage train
train --task denoising --tokens-per-sample $TOKENS --sample-break-mode complete "${NOISE[@]}" "${HEAD_WORDS[@]}" \
    "${MODEL[@]}" "${OPTIMIZER[@]}" --total-num-update "$UPDATES" --num-workers $WORKERS
finetune --optimizer adam --adam-betas '(0.9, 0.999)' --adam-eps 1e-08 --lr-scheduler polynomial_decay \
    --skip-invalid-size-inputs-valid-test
stage evaluate
search_and_score "${SEARCH[@]}"
