# A denoising pretraining and a fine-tuning on a pair: sourced by the run.sh of mbart and bart_xsum after recipe.sh.
# They set SRC and TGT (the pair), LANGS (of the pretraining), TUNING (the task of the fine-tuning) and ADDED (symbols
# that the tasks add).

# begin_denoising LINE...: the lines are settings that cannot change.
begin_denoising() {
    [[ -n $PAIR_TEXT ]] || fail "--pair DIR is needed, with {train,valid,test}.{$SRC,$TGT}; run.sh --help says more"
    [[ -d $PAIR_TEXT ]] || fail "there is no folder $PAIR_TEXT"
    [[ -z $MONO_TEXT || -d $MONO_TEXT ]] || fail "there is no folder $MONO_TEXT"
    # The text of a pair is text, too.
    MONO_TEXT=${MONO_TEXT:-$PAIR_TEXT}
    begin_recipe "pair $PAIR_TEXT $SRC $TGT" "text $MONO_TEXT of $LANGS" "vocabulary $VOCAB" "head $HEAD" \
        "seed $SEED" "$@"
    CODES=$WORK/codes
}

# denoising_head ARCH: HEAD_WORDS.
denoising_head() {
    HEAD_WORDS=(--arch "$1" --criterion mhe_cross_entropy --mhe-head "$HEAD")
    case $HEAD in
        cascade | sampling) HEAD_WORDS+=(--mhe-codebook "$WORK/codes") ;;
        product) HEAD_WORDS+=(--mhe-mixtures 8 --mhe-codebook "$WORK/codes") ;;
    esac
    own_flags
    in_place FINETUNE_FLAGS FINETUNE
}

# prepare_denoising: pieces, a folder of binarised text of each language, the pair, and a codebook.
prepare_denoising() {
    local lang symbol add=()
    begin prepare "$WORK/data/dict.txt"
    run python scripts/data/prepare_denoising.py --mono "$MONO_TEXT" --langs "$LANGS" --source "$PAIR_TEXT" \
        --src "$SRC" --tgt "$TGT" --pieces "$VOCAB" --out "$WORK/data"
    end
    begin preprocess-mono "$WORK/mono-bin"
    if ((!skip)); then rm -rf "$WORK/mono-bin.tmp" "$WORK/mono-bin"; fi
    for lang in ${LANGS//,/ }; do
        run fairseq-preprocess --only-source --srcdict "$WORK/data/dict.txt" \
            --trainpref "$WORK/data/mono/train.$lang" --validpref "$WORK/data/mono/valid.$lang" \
            --workers "$(nproc)" --destdir "$WORK/mono-bin.tmp/$lang"
    done
    run cp "$WORK/data/dict.txt" "$WORK/mono-bin.tmp/dict.txt"
    run mv "$WORK/mono-bin.tmp" "$WORK/mono-bin"
    end
    begin preprocess-pair "$WORK/pair-bin"
    if ((!skip)); then rm -rf "$WORK/pair-bin.tmp" "$WORK/pair-bin"; fi
    run fairseq-preprocess -s "$SRC" -t "$TGT" --srcdict "$WORK/data/dict.txt" --joined-dictionary \
        --trainpref "$WORK/data/pair/train" --validpref "$WORK/data/pair/valid" --testpref "$WORK/data/pair/test" \
        --workers "$(nproc)" --destdir "$WORK/pair-bin.tmp"
    run mv "$WORK/pair-bin.tmp" "$WORK/pair-bin"
    end
    BIN=$WORK/mono-bin
    if [[ $LANGS != *,* ]]; then BIN=$BIN/$LANGS; fi
    for symbol in "${ADDED[@]}"; do add+=(--add-symbol "$symbol"); done
    if [[ " ${HEAD_WORDS[*]} " == *" --mhe-codebook $CODES "* ]]; then assign "${add[@]}"; fi
}

# finetune FLAG...: from the best checkpoint of the pretraining, on the pair.
finetune() {
    begin finetune "$WORK/finetuned/checkpoint_best.pt" "$UPDATES ${FINETUNE[*]}"
    # What was begun from a model trained for fewer updates begins anew.
    if ((!skip)) && [[ ! -e $WORK/finetuned/of || $(<"$WORK/finetuned/of") != "$key" ]]; then
        rm -rf "$WORK/finetuned"
        mkdir "$WORK/finetuned"
        echo "$key" >"$WORK/finetuned/of"
    fi
    continue_training "$WORK/finetuned"
    # --finetune-from-model and not --restore-file: another run then continues with this training.
    run fairseq-train "$WORK/pair-bin" --user-dir "$USER_DIR" "${TUNING[@]}" -s "$SRC" -t "$TGT" "${HEAD_WORDS[@]}" \
        ${MODEL[@]+"${MODEL[@]}"} --finetune-from-model "$WORK/checkpoints/checkpoint_best.pt" "$@" \
        "${FINETUNE[@]}" --required-batch-size-multiple 1 --update-epoch-batch-itr True --seed "$SEED" \
        ${DEVICE[@]+"${DEVICE[@]}"} --no-epoch-checkpoints --save-dir "$WORK/finetuned" --num-workers "$WORKERS" \
        --log-file "$WORK/finetune.log" --log-format "$LOG_FORMAT" --log-interval "${LOG_INTERVAL:-$LOG_EVERY}"
    end
}

# search_and_score FLAG...: the test set searched and scored; the flags are for fairseq-generate.
search_and_score() {
    local reference=$PAIR_TEXT/test.$TGT
    [[ -f $reference ]] || reference=$reference.xz
    begin translate "$WORK/translations" "$UPDATES ${FINETUNE[*]} $*"
    if ((!skip)); then rm -rf "$WORK/translations.tmp" "$WORK/translations"; fi
    run fairseq-generate "$WORK/pair-bin" --user-dir "$USER_DIR" "${TUNING[@]}" -s "$SRC" -t "$TGT" \
        --path "$WORK/finetuned/checkpoint_best.pt" --gen-subset test --remove-bpe sentencepiece "$@" \
        --max-tokens "${GENERATE_TOKENS:-4096}" --required-batch-size-multiple 1 \
        ${EVAL_DEVICE[@]+"${EVAL_DEVICE[@]}"} --log-format "$LOG_FORMAT" --results-path "$WORK/translations.tmp"
    run mv "$WORK/translations.tmp" "$WORK/translations"
    end
    skip=0
    run python scripts/study/score_translations.py "$WORK/translations/generate-test.txt" --reference "$reference" \
        --name "$RECIPE, $HEAD" --out "$WORK/hypotheses.$TGT"
}
