# What the recipes of this folder share: sourced by their run.sh, which sets HEADS, its part of --help, and PAIRED
# where it fine-tunes on a pair, and calls, in order, read_arguments, choose_machine, its own settings, begin_pretraining, and the steps.
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/recipes/recipe.sh"

FAMILY=pretraining
OWN_USAGE="" OWN_HELP="" OWN_VARIABLES="" PAIRED=""

usage() {
    cat <<END
run.sh ${TEXT_USAGE:-[--text FILE | --train FILE --valid FILE --test FILE]} [--out DIR] [--scale full|tiny] [--head HEAD]
       [--vocab V] [--updates N] [--offline DIR] [--precision P] [--only STAGE] [--cpu]${OWN_USAGE:+
       $OWN_USAGE}

$OWN_HELP
--out DIR     default: runs/$RECIPE-HEAD
$(shared_help)

Variables: SEED. MODEL_FLAGS, HEAD_FLAGS${OWN_VARIABLES:+, $OWN_VARIABLES} and OPTIMIZER_FLAGS replace flags of the recipe.
TRAIN_FLAGS are added to those of fairseq-train. MAX_TOKENS is the batch of one GPU. VALIDATE_EVERY and LOG_INTERVAL
are in updates.
END
}

read_arguments() {
    shared_defaults
    TEXT="" TRAIN="" VALID="" TEST="" LABELLED="" PAIR_TEXT="" MONO_TEXT=""
    while (($#)); do
        shared_argument "$@"
        if ((TAKEN)); then
            shift "$TAKEN"
            continue
        fi
        case $1 in
            --text | --train | --valid | --test) [[ -z $PAIRED ]] || no_argument "$1" ;;
            --pair | --mono | --src | --tgt) [[ -n $PAIRED ]] || fail "$1 is for the recipes mbart and bart_xsum" ;;
            --labelled) [[ $RECIPE == roberta ]] || fail "$1 is for the recipe roberta" ;;
            *) no_argument "$1" ;;
        esac
        needs_value "$@"
        case $1 in
            --text) TEXT=$(from_here "$2") ;;
            --train) TRAIN=$(from_here "$2") ;;
            --valid) VALID=$(from_here "$2") ;;
            --test) TEST=$(from_here "$2") ;;
            --labelled) LABELLED=$(from_here "$2") ;;
            --pair) PAIR_TEXT=$(from_here "$2") ;;
            --mono) MONO_TEXT=$(from_here "$2") ;;
            --src) SRC=$2 ;;
            --tgt) TGT=$2 ;;
        esac
        shift 2
    done
    check_shared
    if [[ -n $TEXT ]]; then
        [[ -z $TRAIN$VALID$TEST ]] ||
            fail "--text is split into three; it cannot be combined with --train, --valid, --test"
        SOURCE=(--text "$TEXT")
    elif [[ -n $TRAIN$VALID$TEST ]]; then
        [[ -n $TRAIN && -n $VALID && -n $TEST ]] || fail "--train, --valid and --test go together"
        SOURCE=(--train "$TRAIN" --valid "$VALID" --test "$TEST")
    else
        SOURCE=()
    fi
    local file
    for file in ${SOURCE[@]+"${SOURCE[@]}"}; do
        [[ $file == --* || -f $file ]] || fail "there is no file $file"
    done
}

# begin_pretraining LINE...: the lines are settings that cannot change, besides those known here.
begin_pretraining() {
    begin_recipe "text ${SOURCE[*]:-WikiText-103}" "head $HEAD" "seed $SEED" "$@"
    BIN=$WORK/data/data-bin
}

# The text that WikiText-103 is taken from before its rare words became <unk>, unless there is one already.
wikitext_raw() {
    ((${#SOURCE[@]})) && return
    # The author's own mirror; the address in the paper is gone. The checksum is the one that Apple's mlx-data
    # and JuliaText's CorpusLoaders published for the file of that address. It was not downloaded for this
    # recipe, so if the mirror's file should differ, download.py says so and stops.
    fetch download "${TEXT_URL:-https://wikitext.smerity.com/wikitext-103-raw-v1.zip}" \
        "$WORK/download/wikitext-103-raw-v1.zip" \
        --sha256 "${TEXT_SHA256:-91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794}"
    unpack "$WORK/download/wikitext-103-raw-v1.zip" "$WORK/download/wikitext"
    local folder=$WORK/download/wikitext/wikitext-103-raw
    SOURCE=(--train "$folder/wiki.train.raw" --valid "$folder/wiki.valid.raw" --test "$folder/wiki.test.raw")
}

# GPT-2's byte pairs, in fairseq's form.
gpt2_files() {
    # encoder.json and vocab.bpe: the checksums are tiktoken's (tiktoken_ext/openai_public.py), for OpenAI's
    # own copies of these files. Nobody published one for fairseq's dict.txt, the same tokens by their
    # frequency: what prepare_text.py needs of it is checked there.
    local base=https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe
    fetch encoder.json $base/encoder.json "$WORK/gpt2_bpe/encoder.json" \
        --sha256 196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
    fetch vocab.bpe $base/vocab.bpe "$WORK/gpt2_bpe/vocab.bpe" \
        --sha256 1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
    begin dict.txt "$WORK/gpt2_bpe/dict.txt"
    run python scripts/data/download.py $base/dict.txt "$WORK/gpt2_bpe/dict.txt" ${OFFLINE:+--offline "$OFFLINE"}
    end
}

# prepare FLAG...: the text in tokens, binarised.
prepare() {
    begin prepare "$BIN"
    run python scripts/data/prepare_text.py "${SOURCE[@]}" --out "$WORK/data" "$@"
    end
}

# report FLAG...: print what a log says, if all of the test set was scored.
report() {
    skip=0
    run python examples/pretraining/report.py "$@"
}
