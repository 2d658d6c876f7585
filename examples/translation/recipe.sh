# What the recipes of this folder share: sourced by their run.sh, which sets SRC, TGT and its part of --help, SIZES (of
# the model) and MANY (languages) where it has them, and calls, in order, read_arguments, choose_machine, its own
# settings, settle_model, begin_translation, and the steps.
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipes/recipe.sh"

FAMILY=translation HEADS="cascade product sampling softmax"
SIZES="" MANY="" OWN_USAGE="" OWN_HELP="" OWN_VARIABLES=""

CORPUS=examples/translation/$RECIPE/corpus.toml
# Tokens of the longest sentence that a batch must hold, with room for more.
LONGEST=512

usage() {
    cat <<END
run.sh [--out DIR] [--scale full|tiny] [--head HEAD] [--vocab V] [--updates N] [--finish N] [--batch N]
       [--average N] [--source DIR] [--offline DIR | --mirror URL] [--checksums FILE] [--precision P]
       [--only STAGE] [--cpu]${OWN_USAGE:+
       $OWN_USAGE}

--vocab V     size of the joint dictionary
--finish N    the last N updates as fairseq's softmax, in which the cascade ends
--batch N     tokens of an update, whatever number of GPUs shares it (effective batch size)
--average N   translate with the average of the last N checkpoints; 0: with the best one
--source DIR  your own text in place of a download: {train,valid,test}.{$SRC,$TGT${MANY:+,tags}}, plain or .xz
--mirror URL  download each archive from URL/NAME
--checksums FILE  written by sha256sum; used in place of those in corpus.toml
--out DIR     default: runs/$RECIPE-${SIZES:+SIZE-}HEAD
$(shared_help)${OWN_HELP:+
$OWN_HELP}

Variables: LR, SEED. MODEL_FLAGS, HEAD_FLAGS and OPTIMIZER_FLAGS replace flags of the recipe. PREPARE_FLAGS
(prepare_translation.py) and TRAIN_FLAGS (fairseq-train) are added to them. MAX_TOKENS is the batch of one GPU in
training, GENERATE_TOKENS in translation. VALIDATE_EVERY and LOG_INTERVAL are in updates.${OWN_VARIABLES:+
$OWN_VARIABLES}
END
}

read_arguments() {
    shared_defaults
    CHECKSUMS="" SIZE="" TOKENIZE="" SOURCE="" MIRROR="" BATCH_TOKENS="" AVERAGE="" LANGUAGES="" METHOD=""
    FINISH=""
    while (($#)); do
        shared_argument "$@"
        if ((TAKEN)); then
            shift "$TAKEN"
            continue
        fi
        case $1 in
            --source | --mirror | --checksums | --batch | --average | --finish) ;;
            --size | --tokenize) [[ -n $SIZES ]] || fail "$1 is for wmt14_en_de and wmt16_en_ro" ;;
            --languages | --method) [[ -n $MANY ]] || fail "$1 is for the recipe opus100" ;;
            *) no_argument "$1" ;;
        esac
        needs_value "$@"
        case $1 in
            --source) SOURCE=$(from_here "$2") ;;
            --mirror) MIRROR=$2 ;;
            --checksums) CHECKSUMS=$(from_here "$2") ;;
            --batch) BATCH_TOKENS=$2 ;;
            --average) AVERAGE=$2 ;;
            --finish) FINISH=$2 ;;
            --size) SIZE=$2 ;;
            --tokenize) TOKENIZE=$2 ;;
            --languages) LANGUAGES=$2 ;;
            --method) METHOD=$2 ;;
        esac
        shift 2
    done
    if [[ -n $SIZES ]]; then
        SIZE=${SIZE:-${SIZES%% *}}
        [[ " $SIZES " == *" $SIZE "* ]] || fail "--size is one of $SIZES, not '$SIZE'"
    fi
    [[ -z $TOKENIZE || $TOKENIZE == moses || $TOKENIZE == none ]] ||
        fail "--tokenize is moses or none, not '$TOKENIZE'"
    [[ -z $METHOD || $METHOD == tags || $METHOD == pairs ]] || fail "--method is tags or pairs, not '$METHOD'"
    METHOD=${METHOD#tags}
    WORK=${WORK:-runs/$RECIPE${SIZE:+-$SIZE}${METHOD:+-$METHOD}-${HEAD:-${HEADS%% *}}}
    check_shared
    whole_numbers "--batch, --average and --finish" "$BATCH_TOKENS" "$AVERAGE" "$FINISH"
    FINISH=${FINISH:-0}
    ((!FINISH)) || [[ $HEAD == cascade ]] || fail "--finish is for the head cascade, not for '$HEAD'"
    [[ $BATCH_TOKENS != 0 && $UPDATES != 0 ]] || fail "--batch and --updates are at least 1, got 0"
    [[ -z $SOURCE || -d $SOURCE ]] || fail "there is no folder $SOURCE"
    [[ -z $OFFLINE || -z $MIRROR ]] || fail "--offline takes nothing from a network; it cannot be combined with --mirror"
}

# tiny_settings: of a model to try a recipe out with.
tiny_settings() {
    VOCAB=${VOCAB:-2000} UPDATES=${UPDATES:-200} VALIDATE_EVERY=${VALIDATE_EVERY:-50} LOG_EVERY=25
    AVERAGE=${AVERAGE:-2} WORKERS=0
    batch "${BATCH_TOKENS:-2048}" 2048 "$LONGEST"
    ARCH=mhe_transformer
    MODEL=(--share-all-embeddings --encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 64
        --decoder-embed-dim 64 --encoder-ffn-embed-dim 128 --decoder-ffn-embed-dim 128
        --encoder-attention-heads 2 --decoder-attention-heads 2)
    OPTIMIZER=(--optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0
        --lr 5e-3 --lr-scheduler inverse_sqrt --warmup-updates 50)
}

# transformer_base, transformer_big: models and learning rates of "Attention Is All You Need" (arXiv
# 1706.03762): sizes of table 3; lr is d^-0.5 warmup^-0.5 of section 5.3, with its 4,000 updates of warm-up.
# --warmup-init-lr is that of fairseq's examples/scaling_nmt.
transformer_base() {
    ARCH=mhe_transformer_wmt_en_de
    MODEL=(--share-all-embeddings --dropout "$1")
    attention_optimizer 7e-4
}
transformer_big() {
    ARCH=mhe_transformer_vaswani_wmt_en_de_big
    MODEL=(--share-all-embeddings --dropout "$1")
    attention_optimizer 5e-4
}
attention_optimizer() {
    OPTIMIZER=(--optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 --weight-decay 0.0
        --lr "${LR:-$1}" --lr-scheduler inverse_sqrt --warmup-init-lr 1e-07 --warmup-updates 4000)
}

# settle_model: HEAD_WORDS, and what MODEL_FLAGS, HEAD_FLAGS and OPTIMIZER_FLAGS put in place of settings.
settle_model() {
    CODES=$WORK/codes
    HEAD_WORDS=(--arch "$ARCH" --criterion mhe_cross_entropy --label-smoothing 0.1 --mhe-head "$HEAD")
    case $HEAD in
        cascade | sampling) HEAD_WORDS+=(--mhe-codebook "$CODES") ;;
        product) HEAD_WORDS+=(--mhe-mixtures 8 --mhe-codebook "$CODES") ;;
    esac
    own_flags
    # What is averaged must have been saved and kept.
    if ((VALIDATE_EVERY > UPDATES)); then VALIDATE_EVERY=$UPDATES; fi
    KEEP=$((AVERAGE > 2 ? AVERAGE : 2))
    if ((FINISH)); then settle_finish; fi
}

# settle_finish: FINISHING, the optimiser of the updates that --finish makes a softmax's: OPTIMIZER, from the rate
# that its schedule has when they begin down to zero.
settle_finish() {
    local least=$(((AVERAGE > 1 ? AVERAGE : 1) * VALIDATE_EVERY)) before=$((UPDATES - FINISH)) rate="" warmup="" i flag=""
    ((FINISH >= least && before > 0)) ||
        fail "--finish is $least or more, for its checkpoints to be averaged, and below --updates, $UPDATES; got $FINISH"
    ((WORLD == 1)) || fail "--finish is done by one process, which may use all GPUs of a node; there are $WORLD"
    [[ " ${OPTIMIZER[*]} " == *" --lr-scheduler inverse_sqrt "* ]] ||
        fail "--finish is for --lr-scheduler inverse_sqrt; the optimiser is ${OPTIMIZER[*]}"
    FINISHING=()
    for ((i = 0; i < ${#OPTIMIZER[@]}; i += 1)); do
        if [[ ${OPTIMIZER[i]} == --* ]]; then flag=${OPTIMIZER[i]}; fi
        case $flag in
            --lr) rate=${OPTIMIZER[i]} ;;
            --warmup-updates) warmup=${OPTIMIZER[i]} ;;
            --lr-scheduler | --warmup-init-lr) ;;
            *) FINISHING+=("${OPTIMIZER[i]}") ;;
        esac
    done
    rate=$(awk "BEGIN { w = ${warmup:-4000}; n = $before; printf \"%.6g\", $rate * (n < w ? n / w : sqrt(w / n)) }")
    FINISHING+=(--lr "$rate" --lr-scheduler polynomial_decay --total-num-update "$FINISH"
        --warmup-updates $((FINISH / 50)))
}

# begin_translation FLAG...: of prepare_translation.py.
begin_translation() {
    PREPARE=("$@")
    if [[ $TOKENIZE == moses ]]; then PREPARE+=(--tokenize moses --normalize punctuation); fi
    local more=()
    in_place PREPARE_FLAGS more
    PREPARE+=(${more[@]+"${more[@]}"})
    begin_recipe "text ${SOURCE:-corpus.toml}${LANGUAGES:+ of $LANGUAGES}" "vocabulary $VOCAB" \
        "prepare ${PREPARE[*]}" "head ${HEAD_WORDS[*]}" "model ${MODEL[*]}" "optimizer ${OPTIMIZER[*]}" \
        "tokens of an update ${BATCH_TOKENS:-published}${METHOD:+, $METHOD}" "seed $SEED"
    BIN=$WORK/data-bin
    PAIR=(-s "$SRC" -t "$TGT")
}

# prepare FLAG...: text, pieces, binarised data, and a codebook where the head has one. The flags are for
# extract_corpus.py.
prepare() {
    prepare_text "$@"
    begin preprocess "$BIN"
    if ((!skip)); then rm -rf "$BIN.tmp" "$BIN"; fi
    local pieces=$WORK/data/pieces
    run fairseq-preprocess "${PAIR[@]}" --srcdict "$WORK/data/dict.txt" --joined-dictionary \
        --trainpref "$pieces/train" --validpref "$pieces/valid" --testpref "$pieces/test" \
        --workers "$(nproc)" --destdir "$BIN.tmp"
    run mv "$BIN.tmp" "$BIN"
    end
    if has_codebook; then assign; fi
}
has_codebook() { [[ " ${HEAD_WORDS[*]} " == *" --mhe-codebook $CODES "* ]]; }

# prepare_text FLAG...: text and pieces. The flags are for extract_corpus.py.
prepare_text() {
    local which=(${LANGUAGES:+--languages "$LANGUAGES"} ${CHECKSUMS:+--checksums "$CHECKSUMS"})
    TEXT=$SOURCE
    if [[ -z $SOURCE ]]; then
        TEXT=$WORK/text
        begin download "$WORK/download"
        run python scripts/data/fetch_corpus.py "$CORPUS" --out "$WORK/download" ${which[@]+"${which[@]}"} \
            ${OFFLINE:+--offline "$OFFLINE"} ${MIRROR:+--mirror "$MIRROR"}
        end
        begin extract "$TEXT/test.$TGT" "$*"
        run python scripts/data/extract_corpus.py "$CORPUS" --archives "$WORK/download" --out "$TEXT" \
            ${which[@]+"${which[@]}"} "$@"
        end
    fi
    begin prepare "$WORK/data/dict.txt"
    run python scripts/data/prepare_translation.py --source "$TEXT" --out "$WORK/data" --src "$SRC" --tgt "$TGT" \
        --pieces "$VOCAB" "${PREPARE[@]}"
    end
}

# train_model FLAG...: with the head, and to the end as fairseq's softmax where --finish says so. The flags are of
# task and data.
train_model() {
    local whole=$UPDATES start untied=() word
    UPDATES=$((whole - FINISH))
    train "$@" "${HEAD_WORDS[@]}" "${MODEL[@]}" "${OPTIMIZER[@]}"
    if ((FINISH)); then
        PART=-softmax-from-$UPDATES start=$WORK/softmax-from-$UPDATES.pt
        begin softmax "$start" "$UPDATES"
        run mhe convert "$WORK/checkpoints/checkpoint_last.pt" --data "$BIN" --head softmax -o "$WORK/fitted.pt" --force \
            --device "$( ((GPUS)) && echo cuda || echo cpu)"
        run mhe export "$WORK/fitted.pt" -o "$start" --force
        end
        # What is fitted is the output layer's alone.
        for word in "${MODEL[@]}"; do [[ $word == --share-* ]] || untied+=("$word"); done
        UPDATES=$FINISH
        # Not --restore-file: what was interrupted continues with itself.
        train "$@" --finetune-from-model "$start" --arch "${ARCH#mhe_}" --criterion label_smoothed_cross_entropy \
            --label-smoothing 0.1 "${untied[@]}" "${FINISHING[@]}"
    fi
    UPDATES=$whole
}

# average: CHECKPOINT, what is translated with.
average() {
    CHECKPOINT=$WORK/checkpoints$PART/checkpoint_best.pt
    if ((AVERAGE)); then
        CHECKPOINT=$WORK/averaged.pt
        begin average "$CHECKPOINT" "$UPDATES last $AVERAGE$PART"
        run python scripts/recipes/average_checkpoints.py "$WORK/checkpoints$PART" --last "$AVERAGE" -o "$CHECKPOINT"
        end
    fi
}

# translate FLAG...: the flags are for fairseq-generate.
translate() {
    average
    begin translate "$WORK/translations" "$UPDATES $AVERAGE$PART $*"
    if ((!skip)); then rm -rf "$WORK/translations.tmp" "$WORK/translations"; fi
    run fairseq-generate "$BIN" --user-dir "$USER_DIR" --task mhe_translation "${PAIR[@]}" \
        --path "$CHECKPOINT" --gen-subset test --remove-bpe sentencepiece "$@" \
        --max-tokens "${GENERATE_TOKENS:-4096}" --required-batch-size-multiple 1 \
        ${EVAL_DEVICE[@]+"${EVAL_DEVICE[@]}"} --log-format "$LOG_FORMAT" --results-path "$WORK/translations.tmp"
    run mv "$WORK/translations.tmp" "$WORK/translations"
    end
}

# evaluate FLAG...: print the scores, if all of the test set was translated. The flags are for
# score_translations.py.
evaluate() {
    local reference=$TEXT/test.$TGT
    [[ -f $reference ]] || reference=$reference.xz
    local name="$RECIPE${SIZE:+ $SIZE}, ${HEAD_FLAGS:-$HEAD}${PART:+, its last $FINISH updates as a softmax}"
    if [[ $TOKENIZE == moses ]]; then set -- "$@" --detokenize "$TGT"; fi
    skip=0
    run python scripts/study/score_translations.py "${RESULTS:-$WORK/translations/generate-test.txt}" \
        --reference "$reference" \
        --name "$name" --out "$WORK/hypotheses.$TGT" "$@"
}
