#!/usr/bin/env bash
# OPUS-100: English to and from 99 languages in one transformer with 262,144 pieces and a multi-head encoding head.
#
# May be stopped at any time, even by kill -9, and run again. --help lists arguments and variables.
set -euo pipefail
source "$(dirname "$0")/../recipe.sh"

SRC=src TGT=tgt MANY=1
OWN_USAGE="[--languages L,L,...] [--method tags|pairs]"
OWN_HELP="--languages L,L  languages to pair with English, such as de,fr (default: all 99)
--method M    tags: a tag before the source names the target language, and all pairs are one (default);
              pairs: fairseq's many-to-many task, --task mhe_translation_multi_simple_epoch"
OWN_VARIABLES="TEMPERATURE (5): small languages are repeated, or with pairs drawn, more often; 1: they are not."
read_arguments "$@"
choose_machine

# The scripts of the corpus' authors (bzhangGo/zero, scripts/data, for arXiv 2004.11867) train a transformer of the
# base's size with dropout 0.1, 4,000 updates of warm-up and 64,000 pieces, and repeat no language. The vocabulary
# of 262,144, the temperature, the batch and the number of updates were chosen here.
TEMPERATURE=${TEMPERATURE:-5}
if [[ $SCALE == tiny ]]; then
    tiny_settings
else
    VOCAB=${VOCAB:-262144} UPDATES=${UPDATES:-200000} VALIDATE_EVERY=${VALIDATE_EVERY:-2000} LOG_EVERY=100
    AVERAGE=${AVERAGE:-5} WORKERS=2
    batch "${BATCH_TOKENS:-131072}" 8192 "$LONGEST"
    transformer_base 0.1
    # Nobody looked how long the longest of 371,000 test sentences is; positions are sinusoids and cost nothing.
    MODEL+=(--max-source-positions 4096 --max-target-positions 4096)
fi
settle_model
# Pieces of ten million sentences. Languages differ in how many pieces a sentence has, so that only a ratio of 3
# tells that something is wrong.
begin_translation --tags --max-pieces 250 --ratio 3 --sample 10000000

# Many pairs: the task draws them by temperature, so their text is not repeated.
split_pairs() {
    begin split "$WORK/pairs/langs" "$TEMPERATURE"
    run python scripts/data/split_pairs.py --pieces "$WORK/data" --out "$WORK/pairs"
    end
    LANGS=(--lang-pairs "$(<"$WORK/pairs/directions")" --lang-dict "$WORK/pairs/langs")
    DRAWN=(--sampling-method temperature --sampling-temperature "$TEMPERATURE")
    TOKENS=(--encoder-langtok tgt --decoder-langtok)
    begin preprocess "$BIN"
    if ((!skip)); then rm -rf "$BIN.tmp" "$BIN"; fi
    local pair pairs=() split sets
    read -ra pairs <"$WORK/pairs/pairs"
    for pair in "${pairs[@]}"; do
        sets=()
        for split in train valid test; do
            [[ ! -e $WORK/pairs/$split.$pair.${pair%-*} ]] || sets+=("--${split}pref" "$WORK/pairs/$split.$pair")
        done
        run fairseq-preprocess -s "${pair%-*}" -t "${pair#*-}" --srcdict "$WORK/pairs/dict.txt" \
            --joined-dictionary "${sets[@]}" --workers "$(nproc)" --destdir "$BIN.tmp"
    done
    run mv "$BIN.tmp" "$BIN"
    end
    if has_codebook; then assign "${LANGS[@]}" "${DRAWN[@]}"; fi
}

# translate_pairs FLAG...: each direction that has a test set.
translate_pairs() {
    average
    RESULTS=$WORK/translations
    begin translate "$RESULTS" "$UPDATES $AVERAGE$PART $*"
    if ((!skip)); then rm -rf "$RESULTS.tmp" "$RESULTS"; fi
    local way ways=()
    read -ra ways <"$WORK/pairs/tested"
    for way in "${ways[@]}"; do
        run fairseq-generate "$BIN" --user-dir "$USER_DIR" --task mhe_translation_multi_simple_epoch \
            "${LANGS[@]}" "${TOKENS[@]}" --source-lang "${way%-*}" --target-lang "${way#*-}" \
            --path "$CHECKPOINT" --gen-subset test --remove-bpe sentencepiece "$@" \
            --max-tokens "${GENERATE_TOKENS:-4096}" --required-batch-size-multiple 1 \
            ${EVAL_DEVICE[@]+"${EVAL_DEVICE[@]}"} --log-format "$LOG_FORMAT" --results-path "$RESULTS.tmp/$way"
    done
    run mv "$RESULTS.tmp" "$RESULTS"
    end
}

if [[ $METHOD == pairs ]]; then
    prepare_text --temperature 1
    split_pairs
    stage train
    train_model --task mhe_translation_multi_simple_epoch "${LANGS[@]}" "${TOKENS[@]}" "${DRAWN[@]}" \
        --num-workers "$WORKERS"
else
    prepare --temperature "$TEMPERATURE"
    stage train
    train_model --task mhe_translation "${PAIR[@]}" --num-workers "$WORKERS"
fi
stage evaluate
if [[ $METHOD == pairs ]]; then
    translate_pairs --beam 4 --lenpen 0.6
else
    translate --beam 4 --lenpen 0.6
fi
tags=$TEXT/test.tags
[[ -f $tags ]] || tags=$tags.xz
evaluate --tags "$tags"
