#!/usr/bin/env bash
# Extreme multi-label text: from the field's files to P@k, nDCG@k and PSP@k of the test set.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../../../scripts/recipes/recipe.sh"

FAMILY=classification HEADS="cascade softmax sampling"

usage() {
    cat <<END
run.sh --source DIR [--out DIR] [--scale full|tiny] [--head HEAD] [--by ORDER] [--vocab V] [--updates N]
       [--precision P] [--only STAGE] [--cpu]

--source DIR  documents with labels: {train,valid,test}.tsv, plain or .xz, or trn_X_Y.txt and the like with raw
              texts (scripts/data/prepare_multilabel.py --help)
--by ORDER    which labels share a group: cluster (default), frequency or random
--vocab V     a dictionary of V words (default: all that occur three times)
--out DIR     default: runs/$RECIPE-HEAD
$(shared_help)

Head softmax is the dense layer, one against all. --updates is four times through the documents by default.
Variables: SEED, DOCUMENTS (of an update, default 256). MODEL_FLAGS, HEAD_FLAGS and OPTIMIZER_FLAGS replace flags of
the recipe. PREPARE_FLAGS (prepare_multilabel.py) and TRAIN_FLAGS (fairseq-train) are added to them. VALIDATE_EVERY and
LOG_INTERVAL are in updates.
END
}

shared_defaults
SOURCE="" BY=cluster
while (($#)); do
    shared_argument "$@"
    if ((TAKEN)); then
        shift "$TAKEN"
        continue
    fi
    case $1 in --source | --by) ;; *) no_argument "$1" ;; esac
    needs_value "$@"
    case $1 in
        --source) SOURCE=$(from_here "$2") ;;
        --by) BY=$2 ;;
    esac
    shift 2
done
[[ -n $SOURCE ]] || fail "--source is missing: a folder of documents with labels"
[[ -d $SOURCE ]] || fail "there is no folder $SOURCE"
[[ " cluster frequency random " == *" $BY "* ]] || fail "--by is cluster, frequency or random, not '$BY'"
check_shared
DOCUMENTS=${DOCUMENTS:-256}
whole_numbers DOCUMENTS "$DOCUMENTS"
((DOCUMENTS)) || fail "DOCUMENTS is at least 1, got 0"
# A bag of embeddings is trained in minutes on a CPU.
LIGHT=1
choose_machine

if [[ $SCALE == full ]]; then
    MODEL=(--arch mhe_label_bag)
    OPTIMIZER=(--optimizer adam --lr 2e-3 --clip-norm 0.0 --lr-scheduler polynomial_decay --warmup-updates 50)
    LOG_EVERY=50 WORKERS=1
else
    MODEL=(--arch mhe_label_bag_tiny)
    OPTIMIZER=(--optimizer adam --lr 1e-2 --clip-norm 0.0 --lr-scheduler polynomial_decay --warmup-updates 5)
    LOG_EVERY=10 WORKERS=0
fi
CODES=$WORK/data/labels.codes
HEAD_WORDS=(--mhe-head "$HEAD" --mhe-codebook "$CODES")
own_flags
in_place PREPARE_FLAGS PREPARE
ranks=$((GPUS ? GPUS : WORLD))
BATCH=(--batch-size $(((DOCUMENTS + ranks - 1) / ranks)))

begin_recipe "source $SOURCE" "head ${HEAD_WORDS[*]}" "order $BY" "vocabulary ${VOCAB:-}" "seed $SEED" \
    "documents $DOCUMENTS" "model ${MODEL[*]}" "optimizer ${OPTIMIZER[*]}" "prepare ${PREPARE[*]:-}"
BIN=$WORK/data/data-bin
begin prepare "$CODES"
run python scripts/data/prepare_multilabel.py --source "$SOURCE" --out "$WORK/data" --by "$BY" --seed "$SEED" \
    ${VOCAB:+--words "$VOCAB"} ${PREPARE[@]+"${PREPARE[@]}"}
end
stage train
train_documents=$(sed -E 's/.*"documents": ([0-9]+).*/\1/' "$BIN/multilabel.json")
epoch=$(((train_documents + DOCUMENTS - 1) / DOCUMENTS))
UPDATES=${UPDATES:-$((4 * epoch))}
VALIDATE_EVERY=${VALIDATE_EVERY:-$epoch}
# The learning rate falls to nothing where the training ends.
if [[ " ${OPTIMIZER[*]} " == *" polynomial_decay "* ]]; then OPTIMIZER+=(--total-num-update "$UPDATES"); fi
train --task mhe_multilabel --criterion mhe_multilabel "${MODEL[@]}" "${HEAD_WORDS[@]}" "${OPTIMIZER[@]}" \
    --best-checkpoint-metric P@1 --maximize-best-checkpoint-metric --num-workers $WORKERS
stage evaluate
DEVICE_OF_LABEL=(--device cpu)
if ((GPUS)); then DEVICE_OF_LABEL=(--device cuda); fi
scored evaluate "$WORK/evaluate.log" \
    mhe label "$WORK/checkpoints/checkpoint_best.pt" --data "$BIN" --subset test "${DEVICE_OF_LABEL[@]}" \
    -o "$WORK/test.labels"
echo "$RECIPE, $HEAD: test set of $(tail -n 1 "$WORK/evaluate.log")"
