#!/usr/bin/env bash
# From the bundled corpus to a scored translation, in plain fairseq commands.
#
# Each command is printed before it runs and listed in quickstart/commands.sh, to be repeated by hand. Steps
# that are done are skipped, training continues from its last checkpoint: after an interruption, even a
# kill -9, run it again. Every variable below can be set from outside, such as UPDATES=1400 make quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=${QUICKSTART_DIR:-quickstart}              # where everything is written; from the repository's root
CORPUS=${CORPUS:-examples/translation/data}     # {train,valid,test}.{en,de}[.xz]
SRC=${SRC:-en}
TGT=${TGT:-de}
VOCAB=${VOCAB:-6000}                            # sentencepiece pieces of both languages together
UPDATES=${UPDATES:-700}
VALIDATE_EVERY=${VALIDATE_EVERY:-175}           # updates; a validation translates the validation set
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
    --encoder-attention-heads 4 --decoder-attention-heads 4 --share-all-embeddings --dropout 0.2"}
BATCH_FLAGS=${BATCH_FLAGS:-"--max-tokens 4096"}

fail() { echo "quickstart.sh: error: $*" >&2; exit 1; }

for program in fairseq-train mhe; do
    command -v $program >/dev/null ||
        fail "$program is not on the PATH; run 'make quickstart', or activate .venv first"
done
# Newlines in the defaults are for reading only.
read -ra HEAD <<<"${HEAD_FLAGS//$'\n'/ }"
read -ra MODEL <<<"${MODEL_FLAGS//$'\n'/ }"
read -ra BATCH <<<"${BATCH_FLAGS//$'\n'/ }"
read -ra ASSIGN <<<"${ASSIGN_FLAGS:-}"
CODEBOOK=()
if ((${#ASSIGN[@]})); then CODEBOOK=(--mhe-codebook "$WORK/codes"); fi
# A bar on a terminal, a line every LOG_INTERVAL updates in a file.
if [[ -t 2 ]]; then LOG_FORMAT=${LOG_FORMAT:-tqdm}; else LOG_FORMAT=${LOG_FORMAT:-simple}; fi
# Threads that wait sleep: spinning, they would slow training tenfold where other programs use the cores too.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
# fairseq makes hydra warn at length about its own use of it, on every command.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::UserWarning}

[[ ! -e $WORK || -e $WORK/settings.txt || -z $(ls "$WORK") ]] ||
    fail "$WORK holds something else than a quickstart; set QUICKSTART_DIR to an empty or new folder"
mkdir -p "$WORK"
# Held by the commands too: an orphan of a killed run goes on writing checkpoints and must end first. Some,
# such as fairseq's data workers, notice within seconds that they are orphans.
if command -v flock >/dev/null; then
    exec 9>"$WORK/.lock"
    flock -w 8 9 ||
        fail "another run is at work in $WORK; wait for it, or set QUICKSTART_DIR to another folder"
fi

# What was begun with other settings cannot be continued with these. UPDATES may change: that trains on.
settings=$(printf '%s\n' "corpus $CORPUS $SRC-$TGT" "vocabulary $VOCAB" \
    "assign ${ASSIGN[*]}" "head ${HEAD[*]}" "model ${MODEL[*]}" "batch ${BATCH[*]}")
if [[ -e $WORK/settings.txt ]]; then
    [[ $settings == "$(<"$WORK/settings.txt")" ]] ||
        fail "$WORK was begun with other settings (see $WORK/settings.txt);" \
            "set QUICKSTART_DIR to another folder, or remove it to begin again"
else
    echo "$settings" >"$WORK/.settings.tmp"
    mv "$WORK/.settings.tmp" "$WORK/settings.txt"
fi

COMMANDS=$WORK/commands.sh
cat >"$COMMANDS" <<END
# The commands of the quickstart, in order. Run from the root of the repository, after
# source .venv/bin/activate
set -e
END
mkdir -p "$WORK/done"

# quoted WORD...: the words as a shell would need them typed, but without quotes where none are needed.
quoted() {
    local word line=""
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,+@%-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        line+=" $word"
    done
    echo "${line# }"
}

# run COMMAND...: list it; print and run it unless the step it belongs to is done.
run() {
    quoted "$@" >>"$COMMANDS"
    if ((skip)); then return; fi
    echo
    echo "\$ $(quoted "$@")"
    "$@"
}

# run_line TEXT...: the same for a line of shell.
run_line() {
    echo "$*" >>"$COMMANDS"
    if ((skip)); then return; fi
    echo
    echo "\$ $*"
    bash -c "$*"
}

# begin STEP OUTPUT [KEY]: skip it if it was done with the same KEY, its OUTPUT is there and so were all steps
# before it.    end: note that it is done, and its seconds.
redo=0
begin() {
    step=$1 key=${3:-} skip=0 note="" began=$SECONDS
    if ((!redo)) && [[ -e $2 && -e $WORK/done/$step && $(head -n 1 "$WORK/done/$step") == "key $key" ]]; then
        skip=1
        echo "$step: done before, skipped"
    else
        redo=1
    fi
}
end() {
    if ((skip)); then return; fi
    printf 'key %s\n%s\n%s\n' "$key" $((SECONDS - began)) "$note" >"$WORK/done.tmp"
    mv "$WORK/done.tmp" "$WORK/done/$step"
}

begin prepare "$WORK/data/spm.model"
run python scripts/prepare_data.py --source "$CORPUS" --out "$WORK/data" --src "$SRC" --tgt "$TGT" \
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

# fairseq writes the first file of a save whole or not at all, but copies it to the others, and a kill can
# cut a copy short. Then the newest uncut one takes its place.
whole() { python -m zipfile -t "$1" >/dev/null 2>&1; }
mend_last_checkpoint() {
    local last=$WORK/checkpoints/checkpoint_last.pt other
    if [[ ! -e $last ]] || whole "$last"; then return; fi
    echo "$last is cut short, by a kill in mid-copy"
    rm "$last"
    for other in $(ls -t "$WORK"/checkpoints/checkpoint_[0-9]*.pt 2>/dev/null); do
        if whole "$other"; then
            echo "continuing from $other"
            cp "$other" "$last.tmp"
            mv "$last.tmp" "$last"
            return
        fi
    done
}

begin train "$WORK/checkpoints/checkpoint_best.pt" "$UPDATES"
if ((!skip)); then
    mend_last_checkpoint
    if [[ -e $WORK/checkpoints/checkpoint_last.pt ]]; then
        note="since the last interruption"
        echo "train: continues from $WORK/checkpoints/checkpoint_last.pt"
    fi
fi
# --validate-interval 1000 (epochs): validation is by updates only. --required-batch-size-multiple 1: the
# default, 8, throws away the last sentences of every set. --update-epoch-batch-itr True: without it a resumed
# run trains on other batches than an uninterrupted one.
run fairseq-train "$WORK/data-bin" --user-dir "$USER_DIR" --task mhe_translation -s "$SRC" -t "$TGT" \
    "${HEAD[@]}" ${CODEBOOK[@]+"${CODEBOOK[@]}"} "${MODEL[@]}" \
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 \
    --lr 2e-3 --lr-scheduler inverse_sqrt --warmup-updates 200 \
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
run python scripts/report_quickstart.py --work "$WORK" --src "$SRC" --tgt "$TGT" --user-dir "$USER_DIR"
