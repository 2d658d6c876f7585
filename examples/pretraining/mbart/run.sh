#!/usr/bin/env bash
# An mBART of two languages with a multi-head encoding head, fine-tuned to translate.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"
source "$(dirname "$0")/../denoising.sh"

HEADS="cascade product sampling softmax" PAIRED=1 SRC=en TGT=de
TEXT_USAGE="--pair DIR [--mono DIR] [--src L] [--tgt L]" OWN_VARIABLES="FINETUNE_FLAGS, GENERATE_TOKENS"
OWN_HELP="--pair DIR    {train,valid,test}.{SRC,TGT}, plain or .xz, to fine-tune on
--mono DIR    {train,valid}.{SRC,TGT}, to pretrain on (default: the sides of the pair)
--src, --tgt  languages of the pair (default: en, de)
--vocab V     sentencepiece byte pairs trained on the text (default: 250,000; tiny: 2,000)"
read_arguments "$@"
choose_machine

# mBART's noise and optimizer are the paper's (arXiv 2001.08210) and fairseq's examples/mbart: 35% of the words masked
# in spans, sentences of a sample in another order; fine-tuning with dropout 0.3 and 40,000 updates.
NOISE=(--mask 0.35 --mask-length span-poisson --poisson-lambda 3.5 --replace-length 1 --rotate 0 --permute-sentences 1)
if [[ $SCALE == full ]]; then
    VOCAB=${VOCAB:-250000} UPDATES=${UPDATES:-500000} VALIDATE_EVERY=${VALIDATE_EVERY:-5000} LOG_EVERY=200
    TOKENS=512 WORKERS=1 ARCH=mhe_mbart_large
    batch $((256 * 1024)) 2048
    MODEL=()
    OPTIMIZER=(--optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-06 --dropout 0.1
        --lr 3e-4 --lr-scheduler polynomial_decay --warmup-updates 10000)
    FINETUNE=(--max-update 40000 --total-num-update 40000 --warmup-updates 2500 --max-tokens 1024 --update-freq 2
        --lr 3e-5 --dropout 0.3 --attention-dropout 0.1 --label-smoothing 0.2)
else
    VOCAB=${VOCAB:-2000} UPDATES=${UPDATES:-200} VALIDATE_EVERY=${VALIDATE_EVERY:-50} LOG_EVERY=25
    TOKENS=128 WORKERS=0 ARCH=mhe_mbart_base
    batch 2048 2048
    MODEL=(--encoder-layers 2 --decoder-layers 2 --encoder-attention-heads 2 --decoder-attention-heads 2
        --encoder-embed-dim 64 --decoder-embed-dim 64 --encoder-ffn-embed-dim 128 --decoder-ffn-embed-dim 128)
    OPTIMIZER=(--optimizer adam --clip-norm 1.0 --lr 3e-3 --lr-scheduler polynomial_decay --warmup-updates 50)
    FINETUNE=(--max-update 200 --total-num-update 200 --warmup-updates 20 --max-tokens 2048 --lr 3e-3
        --label-smoothing 0.1)
fi
denoising_head "$ARCH"
LANGS=$SRC,$TGT TUNING=(--task mhe_translation_from_pretrained_bart --langs "$SRC,$TGT")
ADDED=("[$SRC]" "[$TGT]" "<mask>")
begin_denoising "model ${MODEL[*]:-}" "head ${HEAD_WORDS[*]}" "optimizer ${OPTIMIZER[*]}"

prepare_denoising
stage train
train --task multilingual_denoising --langs "$LANGS" --add-lang-token --multilang-sampling-alpha 0.7 \
    --tokens-per-sample $TOKENS --sample-break-mode complete "${NOISE[@]}" "${HEAD_WORDS[@]}" \
    ${MODEL[@]+"${MODEL[@]}"} "${OPTIMIZER[@]}" --total-num-update "$UPDATES" --num-workers $WORKERS
finetune --optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-06 --lr-scheduler polynomial_decay
stage evaluate
search_and_score --beam 5
