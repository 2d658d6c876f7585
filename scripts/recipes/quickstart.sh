#!/usr/bin/env bash
# From the bundled corpus to a scored translation, in plain fairseq commands.
#
#   scripts/recipes/quickstart.sh [--long] [--estimate]
#
#   --long       the training that docs and studies compare with: larger batches, more epochs, a folder of its own
#   --estimate   only print how long it will take
#
# Each command is printed before it runs and listed in quickstart/commands.sh, to be repeated by hand. Steps
# that are done are skipped, training continues from its last checkpoint: after an interruption, even a
# kill -9, run it again. Every variable below can be set from outside, such as UPDATES=1600 make quickstart.
set -euo pipefail
cd "$(dirname "$0")/../.."
NAME=quickstart.sh
HOW_TO_INSTALL="run 'make quickstart', or activate .venv first"
source scripts/recipes/steps.sh

# Batches are small and dropout is low because the training is short: what counts is the number of updates.
folder=quickstart updates=750 every=250 batch=1024 rate=1.5e-3 dropout=0.1 milliseconds=345 estimate=0
for flag in "$@"; do
    case $flag in
        --long) folder=quickstart-long updates=700 every=175 batch=4096 rate=2e-3 dropout=0.2 milliseconds=1010 ;;
        --estimate) estimate=1 ;;
        *) fail "there is no flag $flag; there are --long and --estimate" ;;
    esac
done
# Of a model, batch or corpus of one's own no time is known.
if [[ -n ${BATCH_FLAGS:-}${MODEL_FLAGS:-}${HEAD_FLAGS:-}${CORPUS:-} ]]; then milliseconds=0; fi

WORK=${QUICKSTART_DIR:-$folder}                 # where everything is written; from the repository's root
CORPUS=${CORPUS:-examples/translation/data}     # {train,valid,test}.{en,de}[.xz]
SRC=${SRC:-en}
TGT=${TGT:-de}
VOCAB=${VOCAB:-6000}                            # sentencepiece pieces of both languages together
UPDATES=${UPDATES:-$updates}
VALIDATE_EVERY=${VALIDATE_EVERY:-$every}        # updates; a validation translates the validation set
BEAM=${BEAM:-5}
LOG_INTERVAL=${LOG_INTERVAL:-25}
USER_DIR=${USER_DIR:-mhe_fairseq}
# ASSIGN_FLAGS are flags of `mhe assign`, which learns from the training set which tokens share a group. Empty:
# it is not run, and tokens have their slots in the dictionary's order; so it is with HEAD_FLAGS of your own.
if [[ -z ${HEAD_FLAGS:-} ]]; then
    ASSIGN_FLAGS=${ASSIGN_FLAGS---by cluster}
    HEAD_FLAGS="--arch mhe_transformer --mhe-head cascade --criterion mhe_cross_entropy --label-smoothing 0.1"
fi
MODEL_FLAGS=${MODEL_FLAGS:-"--encoder-layers 3 --decoder-layers 3
    --encoder-embed-dim 256 --decoder-embed-dim 256 --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024
    --encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --dropout $dropout"}
BATCH_FLAGS=${BATCH_FLAGS:-"--max-tokens $batch"}
LR=${LR:-$rate}

if ((estimate)); then
    # Seconds of everything but the training, and of the installation. With them, milliseconds an update of
    # --long give the 14:47 that it took; those of the other are less by the ratio of the processors' times.
    other=60 installation=120
    if [[ -e ${VENV:-.venv}/.installed ]]; then installation=0; fi
    seconds=$((UPDATES * milliseconds / 1000 + other + installation))
    if [[ -e $WORK/settings.txt ]]; then
        echo "quickstart: what is done in $WORK is skipped"
    elif ((milliseconds)); then
        echo "quickstart: about $(((seconds + 30) / 60)) minutes on two idle cores, $UPDATES updates"
    else
        echo "quickstart: $UPDATES updates of your own settings; how long they take is not known"
    fi
    exit 0
fi

need fairseq-train mhe
# Newlines in the defaults are for reading only.
read -ra HEAD <<<"${HEAD_FLAGS//$'\n'/ }"
read -ra MODEL <<<"${MODEL_FLAGS//$'\n'/ }"
read -ra BATCH <<<"${BATCH_FLAGS//$'\n'/ }"
read -ra ASSIGN <<<"${ASSIGN_FLAGS:-}"
CODEBOOK=()
if ((${#ASSIGN[@]})); then CODEBOOK=(--mhe-codebook "$WORK/codes"); fi
settle_environment
open_work "a quickstart" "set QUICKSTART_DIR to"
# UPDATES may change: that trains on.
keep_settings "corpus $CORPUS $SRC-$TGT" "vocabulary $VOCAB" \
    "assign ${ASSIGN[*]}" "head ${HEAD[*]}" "model ${MODEL[*]}" "batch ${BATCH[*]}" "learning rate $LR"
list_commands "the quickstart"

begin prepare "$WORK/data/spm.model"
run python scripts/data/prepare_data.py --source "$CORPUS" --out "$WORK/data" --src "$SRC" --tgt "$TGT" \
    --vocab-size "$VOCAB"
end

begin preprocess "$WORK/data-bin"
if ((!skip)); then rm -rf "$WORK/data-bin.tmp" "$WORK/data-bin"; fi
pieces=$WORK/data/pieces
run fairseq-preprocess -s "$SRC" -t "$TGT" --joined-dictionary --workers 2 \
    --trainpref "$pieces/train" --validpref "$pieces/valid" --testpref "$pieces/test" \
    --destdir "$WORK/data-bin.tmp"
run mv "$WORK/data-bin.tmp" "$WORK/data-bin"
end

if ((${#ASSIGN[@]})); then
    begin assign "$WORK/codes"
    run mhe assign --data "$WORK/data-bin" "${ASSIGN[@]}" -o "$WORK/codes"
    end
fi

begin train "$WORK/checkpoints/checkpoint_best.pt" "$UPDATES"
continue_training "$WORK/checkpoints"
# --validate-interval 1000 (epochs): validation is by updates only. --required-batch-size-multiple 1: the
# default, 8, throws away the last sentences of every set. --update-epoch-batch-itr True: without it a resumed
# run trains on other batches than an uninterrupted one.
run fairseq-train "$WORK/data-bin" --user-dir "$USER_DIR" --task mhe_translation -s "$SRC" -t "$TGT" \
    "${HEAD[@]}" ${CODEBOOK[@]+"${CODEBOOK[@]}"} "${MODEL[@]}" \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 \
    --lr "$LR" --lr-scheduler inverse_sqrt --warmup-updates 200 \
    "${BATCH[@]}" --required-batch-size-multiple 1 --update-epoch-batch-itr True \
    --max-update "$UPDATES" --seed 1 --cpu --num-workers 0 \
    --eval-bleu --eval-bleu-detok space --eval-bleu-remove-bpe sentencepiece \
    --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' \
    --best-checkpoint-metric bleu --maximize-best-checkpoint-metric \
    --validate-interval 1000 --save-interval-updates "$VALIDATE_EVERY" --keep-interval-updates 1 \
    --no-epoch-checkpoints --save-dir "$WORK/checkpoints" --tensorboard-logdir "$WORK/tensorboard" \
    --log-format "$LOG_FORMAT" --log-interval "$LOG_INTERVAL" --log-file "$WORK/train.log"
end

begin translate "$WORK/hypotheses.$TGT" "$UPDATES beam $BEAM"
if ((!skip)); then rm -rf "$WORK/translations.tmp" "$WORK/translations" "$WORK/hypotheses.$TGT"; fi
run fairseq-generate "$WORK/data-bin" --user-dir "$USER_DIR" --task mhe_translation -s "$SRC" -t "$TGT" \
    --path "$WORK/checkpoints/checkpoint_best.pt" --gen-subset test --remove-bpe sentencepiece \
    --beam "$BEAM" --max-len-a 1.2 --max-len-b 10 --max-tokens 4096 --required-batch-size-multiple 1 --cpu \
    --log-format "$LOG_FORMAT" --results-path "$WORK/translations.tmp"
run mv "$WORK/translations.tmp" "$WORK/translations"
# fairseq translates sentences of like length together; "H-17 TAB score TAB text" is sentence 17 of the file.
run_line "grep '^H-' $(quoted "$WORK/translations/generate-test.txt") | cut -c 3- | sort -n | cut -f 3 >" \
    "$(quoted "$WORK/hypotheses.$TGT")"
wanted=$(wc -l <"$WORK/data/text/test.$SRC") found=$(wc -l <"$WORK/hypotheses.$TGT")
((wanted == found)) || fail "$wanted test sentences went in and $found translations came out;" \
    "a score would not be for the test set"
end

skip=0
run python scripts/recipes/report_quickstart.py --work "$WORK" --src "$SRC" --tgt "$TGT" --user-dir "$USER_DIR"
