# What the recipes of this folder share: sourced by their run.sh, which sets RECIPE and HEADS and calls, in
# order, read_arguments, choose_machine, its own settings, begin_recipe, and the steps.
NAME=run.sh
HOW_TO_INSTALL="run 'make venv' and activate .venv first"
source scripts/steps.sh

USER_DIR=${USER_DIR:-mhe_fairseq}
SEED=${SEED:-1}
LOG_INTERVAL=${LOG_INTERVAL:-}

# A path given from elsewhere, as it is called in the root of the repository.
from_here() { realpath -m --relative-base="$ROOT" "$(cd "$CALLED_FROM" && realpath -m "$1")"; }

read_arguments() {
    TEXT="" TRAIN="" VALID="" TEST="" WORK="" SCALE=full HEAD=${HEAD:-} VOCAB="" UPDATES="" OFFLINE="" CPU=0
    LABELLED=""
    while (($#)); do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --cpu) CPU=1; shift; continue ;;
            --text | --train | --valid | --test | --out | --offline) ;;
            --scale | --head | --vocab | --updates) ;;
            --labelled) [[ $RECIPE == roberta ]] || fail "$1 is for the recipe roberta" ;;
            *) fail "there is no argument '$1'; run.sh --help tells what there is" ;;
        esac
        (($# > 1)) && [[ -n $2 ]] || fail "$1 needs a value"
        case $1 in
            --text) TEXT=$(from_here "$2") ;;
            --train) TRAIN=$(from_here "$2") ;;
            --valid) VALID=$(from_here "$2") ;;
            --test) TEST=$(from_here "$2") ;;
            --out) WORK=$(from_here "$2") ;;
            --offline) OFFLINE=$(from_here "$2") ;;
            --labelled) LABELLED=$(from_here "$2") ;;
            --scale) SCALE=$2 ;;
            --head) HEAD=$2 ;;
            --vocab) VOCAB=$2 ;;
            --updates) UPDATES=$2 ;;
        esac
        shift 2
    done
    [[ $SCALE == tiny || $SCALE == full ]] || fail "--scale is tiny or full, not '$SCALE'"
    HEAD=${HEAD:-${HEADS%% *}}
    [[ " $HEADS " == *" $HEAD "* ]] || fail "--head is one of $HEADS, not '$HEAD'"
    WORK=${WORK:-runs/$RECIPE-$HEAD}
    local number
    for number in "$VOCAB" "$UPDATES"; do
        [[ $number =~ ^[0-9]*$ ]] || fail "--vocab and --updates are whole numbers, got '$number'"
    done
    if [[ -n $TEXT ]]; then
        [[ -z $TRAIN$VALID$TEST ]] ||
            fail "--text is split into three; it does not go with --train, --valid, --test"
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

# How many GPUs there are, and flags for them or for none.
choose_machine() {
    need fairseq-train mhe
    settle_environment
    GPUS=0
    if ((!CPU)); then GPUS=$(python -c 'import torch; print(torch.cuda.device_count())'); fi
    if ((GPUS)); then
        DEVICE=(--fp16)
        EVAL_DEVICE=(--fp16)
        echo "$RECIPE: on $GPUS GPU(s)"
    else
        DEVICE=(--cpu)
        EVAL_DEVICE=(--cpu)
        echo "$RECIPE: on the CPU"
        [[ $SCALE == tiny ]] ||
            echo "$RECIPE: a model of full size takes months without a GPU; --scale tiny tries it out"
    fi
}

# batch TOKENS PER_GPU: flags for an update of TOKENS tokens, or the next multiple of what the GPUs take at
# once. PER_GPU tokens are what one holds (MAX_TOKENS changes it).
batch() {
    local per_gpu=${MAX_TOKENS:-$2}
    local at_once=$((per_gpu * (GPUS ? GPUS : 1)))
    BATCH=(--max-tokens "$per_gpu" --update-freq $((($1 + at_once - 1) / at_once)))
}

# begin_recipe LINE...: the lines are settings that cannot change, besides those known here.
begin_recipe() {
    open_work "a run of a recipe" "give --out"
    keep_settings "recipe $RECIPE $SCALE" "text ${SOURCE[*]:-WikiText-103}" "head $HEAD" "seed $SEED" "$@"
    list_commands "examples/pretraining/$RECIPE/run.sh"
    BIN=$WORK/data/data-bin
}

# fetch STEP URL FILE CHECKSUM_FLAG CHECKSUM
fetch() {
    begin "$1" "$3"
    run python scripts/download.py "$2" "$3" "$4" "$5" ${OFFLINE:+--offline "$OFFLINE"}
    end
}

# unpack ZIP FOLDER: with its checksums.
unpack() {
    begin unpack "$2"
    if ((!skip)); then rm -rf "$2.tmp" "$2"; fi
    run python -m zipfile -e "$1" "$2.tmp"
    run mv "$2.tmp" "$2"
    end
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
    run python scripts/download.py $base/dict.txt "$WORK/gpt2_bpe/dict.txt" ${OFFLINE:+--offline "$OFFLINE"}
    end
}

# prepare FLAG...: the text in tokens, binarised.
prepare() {
    begin prepare "$BIN"
    run python scripts/prepare_text.py "${SOURCE[@]}" --out "$WORK/data" "$@"
    end
}

# assign FLAG...: a codebook of clusters.
assign() {
    begin assign "$WORK/codes"
    run mhe assign --data "$BIN" --by cluster "$@" -o "$WORK/codes"
    end
}

# train FLAG...: --validate-interval 1000 (epochs): validation is by updates only.
# --required-batch-size-multiple 1: the default, 8, throws away the last samples of every set.
# --update-epoch-batch-itr True: without it a resumed run trains on other batches than an uninterrupted one.
train() {
    begin train "$WORK/checkpoints/checkpoint_best.pt" "$UPDATES"
    continue_training "$WORK/checkpoints"
    run fairseq-train "$BIN" --user-dir "$USER_DIR" "$@" \
        "${BATCH[@]}" --required-batch-size-multiple 1 --update-epoch-batch-itr True \
        --max-update "$UPDATES" --seed "$SEED" "${DEVICE[@]}" \
        --validate-interval 1000 --validate-interval-updates "$VALIDATE_EVERY" \
        --save-interval-updates "$VALIDATE_EVERY" --keep-interval-updates 2 --no-epoch-checkpoints \
        --save-dir "$WORK/checkpoints" --tensorboard-logdir "$WORK/tensorboard" \
        --log-format "$LOG_FORMAT" --log-interval "${LOG_INTERVAL:-$LOG_EVERY}" --log-file "$WORK/train.log"
    end
}

# scored STEP LOG COMMAND...: a command whose log is kept in LOG.
scored() {
    local name=$1 log=$2
    shift 2
    begin "$name" "$log" "$UPDATES"
    run_line "$(quoted "$@") >$(quoted "$log.tmp") 2>&1" || {
        tail -n 3 "$log.tmp" >&2
        fail "$1 failed; all it said is in $log.tmp"
    }
    run mv "$log.tmp" "$log"
    end
}

# report FLAG...: print what a log says, if all of the test set was scored.
report() {
    skip=0
    run python examples/pretraining/report.py "$@"
}
