# What every recipe shares: sourced by examples/*/recipe.sh, which a run.sh sources. Goes to the root of the
# repository, from wherever a recipe was called. Sets and uses these:
#
#     FAMILY, RECIPE, HEADS     examples/FAMILY/RECIPE/run.sh, and the heads it takes, the default first
#     SCALE HEAD VOCAB UPDATES OFFLINE WORK CPU PRECISION ONLY     from the arguments
#     GPUS WORLD RANK           GPUs that share an update; processes that a launcher started; which one this is
#     DEVICE EVAL_DEVICE DISTRIBUTED BATCH                         flags of fairseq's commands
CALLED_FROM=$PWD
RECIPE=$(basename "$(cd "$(dirname "$0")" && pwd)")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROOT=$PWD
NAME=run.sh
HOW_TO_INSTALL="run 'make venv' and activate .venv first"
source scripts/recipes/steps.sh

USER_DIR=${USER_DIR:-mhe_fairseq}
SEED=${SEED:-1}
LOG_INTERVAL=${LOG_INTERVAL:-}
KEEP=${KEEP:-2}

# A path given from elsewhere, as it is called in the root of the repository.
from_here() { realpath -m --relative-base="$ROOT" "$(cd "$CALLED_FROM" && realpath -m "$1")"; }

shared_defaults() {
    WORK="" SCALE=full HEAD=${HEAD:-} VOCAB="" UPDATES="" OFFLINE="" CPU=0 PRECISION="" ONLY=""
}

# What --help says of the arguments below.
shared_help() {
    cat <<END
--head HEAD   one of $HEADS
--scale tiny  a model that trains in about a minute on two CPU cores
--updates N   updates of the training; to train on, give a larger number
--offline DIR take the downloads from DIR; the network is not used
--precision P fp16 (default on a GPU), bf16 or fp32 (default on a CPU)
--only STAGE  prepare, train or evaluate; the stages before it must be done
--cpu         use no GPU
END
}

# shared_argument WORD...: TAKEN is how many of the words it was; 0: the first is none of the shared ones.
shared_argument() {
    TAKEN=2
    case $1 in
        -h | --help) usage; exit 0 ;;
        --cpu) CPU=1 TAKEN=1; return ;;
        --scale | --head | --vocab | --updates | --out | --offline | --precision | --only) ;;
        *) TAKEN=0; return ;;
    esac
    needs_value "$@"
    case $1 in
        --out) WORK=$(from_here "$2") ;;
        --offline) OFFLINE=$(from_here "$2") ;;
        --scale) SCALE=$2 ;;
        --head) HEAD=$2 ;;
        --vocab) VOCAB=$2 ;;
        --updates) UPDATES=$2 ;;
        --precision) PRECISION=$2 ;;
        --only) ONLY=$2 ;;
    esac
}
needs_value() { (($# > 1)) && [[ -n $2 && $2 != --* ]] || fail "$1 needs a value"; }
no_argument() { fail "there is no argument '$1'; run.sh --help lists the arguments"; }

# whole_numbers NAMES VALUE...: every value is a whole number or empty.
whole_numbers() {
    local names=$1 number
    shift
    for number in "$@"; do
        [[ $number =~ ^(0|[1-9][0-9]*)?$ ]] || fail "$names are whole numbers, got '$number'"
    done
}

check_shared() {
    [[ $SCALE == tiny || $SCALE == full ]] || fail "--scale is tiny or full, not '$SCALE'"
    HEAD=${HEAD:-${HEADS%% *}}
    [[ " $HEADS " == *" $HEAD "* ]] || fail "--head is one of $HEADS, not '$HEAD'"
    WORK=${WORK:-runs/$RECIPE-$HEAD}
    whole_numbers "--vocab and --updates" "$VOCAB" "$UPDATES"
    whole_numbers "MAX_TOKENS and VALIDATE_EVERY" "${MAX_TOKENS:-}" "${VALIDATE_EVERY:-}"
    [[ ${MAX_TOKENS:-1} != 0 && ${VALIDATE_EVERY:-1} != 0 ]] ||
        fail "MAX_TOKENS and VALIDATE_EVERY are at least 1, got 0"
    [[ -z $PRECISION || " fp16 bf16 fp32 " == *" $PRECISION "* ]] ||
        fail "--precision is fp16, bf16 or fp32, not '$PRECISION'"
    [[ -z $ONLY || " prepare train evaluate " == *" $ONLY "* ]] ||
        fail "--only is prepare, train or evaluate, not '$ONLY'"
}

# Processes that torchrun or srun started for one training: each runs this script, and only trains.
find_world() {
    if [[ -n ${WORLD_SIZE:-} ]]; then
        : # torchrun set what follows, too
    elif ((${SLURM_STEP_NUM_TASKS:-1} > 1)); then
        # srun: one task for each GPU. (SLURM_NTASKS is there in the batch script, too, which is one process.)
        WORLD_SIZE=$SLURM_STEP_NUM_TASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
        MASTER_PORT=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 40000))}
        if [[ -z ${MASTER_ADDR:-} ]]; then
            # Its first line; through a pipe to `head` a long list of hosts would count as failed.
            MASTER_ADDR=$(scontrol show hostnames "$SLURM_STEP_NODELIST") && [[ -n $MASTER_ADDR ]] ||
                fail "scontrol does not list the hosts of '$SLURM_STEP_NODELIST'; set MASTER_ADDR to the first"
            MASTER_ADDR=${MASTER_ADDR%%$'\n'*}
        fi
        export WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR MASTER_PORT
    fi
    WORLD=${WORLD_SIZE:-1}
    if ((WORLD == 1)); then
        # Where a platform or a job has set these for one process, fairseq would train on one GPU, or wait for
        # processes that nobody starts, instead of starting one for each GPU.
        unset WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR MASTER_PORT SLURM_STEP_NODELIST SLURM_JOB_NODELIST
        RANK=0
        return
    fi
    local name
    for name in RANK LOCAL_RANK MASTER_ADDR MASTER_PORT; do
        [[ -n ${!name:-} ]] ||
            fail "WORLD_SIZE is $WORLD and $name is not set; torchrun sets both, or unset WORLD_SIZE"
    done
    [[ -z $ONLY || $ONLY == train ]] ||
        fail "--only $ONLY is done by one process, not by the $WORLD of torchrun or srun"
    ONLY=train
    # One of them speaks and writes; fairseq keeps to that, too. What is wrong on another node, its first one says.
    if ((RANK)); then
        exec >/dev/null
        if ((LOCAL_RANK)); then fail() { exit 1; }; fi
    fi
}

# How many GPUs there are, and flags for them or for none.
choose_machine() {
    need fairseq-train mhe
    settle_environment
    find_world
    GPUS=0
    if ((!CPU)); then GPUS=$(python -c 'import torch; print(torch.cuda.device_count())'); fi
    DISTRIBUTED=()
    if ((WORLD > 1)); then
        # In so many words: left alone, fairseq takes WORLD_SIZE over only where it sees several GPUs itself. A
        # process may see all GPUs of its node, or its own alone.
        DISTRIBUTED=(--distributed-world-size "$WORLD" --distributed-rank "$RANK"
            --device-id $((LOCAL_RANK % (GPUS ? GPUS : WORLD)))
            --distributed-init-method "tcp://$MASTER_ADDR:$MASTER_PORT" --distributed-no-spawn)
    fi
    if ((GPUS)); then
        if ((WORLD > 1)); then GPUS=$WORLD; fi
        DEVICE=()
        PRECISION=${PRECISION:-fp16}
        echo "$RECIPE: on $GPUS GPU(s)"
    else
        DEVICE=(--cpu)
        PRECISION=${PRECISION:-fp32}
        if ((WORLD > 1)); then
            DISTRIBUTED+=(--distributed-backend gloo)
        fi
        echo "$RECIPE: on the CPU$( ((WORLD == 1)) || echo ", $WORLD processes")"
        [[ $SCALE == tiny || -n ${LIGHT:-} ]] ||
            echo "$RECIPE: a full-size model takes months without a GPU; --scale tiny tries the recipe out"
    fi
    if [[ $PRECISION != fp32 ]]; then DEVICE+=("--$PRECISION"); fi
    # Training, searching and scoring take the same flags.
    EVAL_DEVICE=(${DEVICE[@]+"${DEVICE[@]}"})
}

# in_place VARIABLE ARRAY: the words of a variable that is set take the place of the array's.
in_place() { [[ -z ${!1:-} ]] || read -ra "$2" <<<"${!1//$'\n'/ }"; }
own_flags() {
    in_place MODEL_FLAGS MODEL
    in_place HEAD_FLAGS HEAD_WORDS
    in_place OPTIMIZER_FLAGS OPTIMIZER
}

# batch TOKENS PER_GPU [LONGEST]: flags for an update of TOKENS tokens, whatever number of GPUs share it. PER_GPU
# tokens are what one holds (MAX_TOKENS changes it). Where samples have at most LONGEST tokens, a GPU takes less
# at once to keep to TOKENS; otherwise an update has the next multiple. Processes on CPUs count as GPUs do.
batch() {
    local per_gpu=${MAX_TOKENS:-$2} longest=${3:-}
    local ranks=$((GPUS ? GPUS : ${WORLD:-1}))
    local frequency=$((($1 + per_gpu * ranks - 1) / (per_gpu * ranks)))
    if [[ -n $longest ]]; then
        per_gpu=$((($1 + frequency * ranks - 1) / (frequency * ranks)))
        if ((per_gpu < longest)); then per_gpu=$longest; fi
    fi
    BATCH=(--max-tokens "$per_gpu" --update-freq "$frequency")
}

# begin_recipe LINE...: the lines are settings that cannot change, besides those known here.
begin_recipe() {
    if ((RANK)); then
        COMMANDS=/dev/null redo=0 skip=0 GIVE="give --out"
        end() { :; }
        [[ -e $WORK/settings.txt ]] ||
            fail "${HOSTNAME:-this node} has no $WORK/settings.txt; prepare it first, on a file system that all nodes share"
    else
        open_work "a run of a recipe" "give --out"
    fi
    keep_settings "recipe $RECIPE $SCALE" "$@"
    ((RANK)) || list_commands "examples/$FAMILY/$RECIPE/run.sh"
    stage prepare
}

# fetch STEP URL FILE CHECKSUM_FLAG CHECKSUM
fetch() {
    begin "$1" "$3"
    run python scripts/data/download.py "$2" "$3" "$4" "$5" ${OFFLINE:+--offline "$OFFLINE"}
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

# assign FLAG...: a codebook of clusters.
assign() {
    begin assign "$WORK/codes"
    run mhe assign --data "$BIN" --by cluster "$@" -o "$WORK/codes"
    end
}

# train FLAG...: --validate-interval 1000 (epochs): validation is by updates only.
# --required-batch-size-multiple 1: the default, 8, throws away the last samples of every set.
# --update-epoch-batch-itr True: without it a resumed run trains on other batches than an uninterrupted one.
# PART: what its step, folders and log are called beside those of another training of the recipe.
PART=""
train() {
    local more=()
    in_place TRAIN_FLAGS more
    begin "train$PART" "$WORK/checkpoints$PART/checkpoint_best.pt" "$UPDATES"
    ((RANK)) || continue_training "$WORK/checkpoints$PART"
    run fairseq-train "$BIN" --user-dir "$USER_DIR" "$@" \
        "${BATCH[@]}" --required-batch-size-multiple 1 --update-epoch-batch-itr True \
        --max-update "$UPDATES" --seed "$SEED" ${DEVICE[@]+"${DEVICE[@]}"} \
        ${DISTRIBUTED[@]+"${DISTRIBUTED[@]}"} ${more[@]+"${more[@]}"} \
        --validate-interval 1000 --validate-interval-updates "$VALIDATE_EVERY" \
        --save-interval-updates "$VALIDATE_EVERY" --keep-interval-updates "$KEEP" --no-epoch-checkpoints \
        --save-dir "$WORK/checkpoints$PART" --tensorboard-logdir "$WORK/tensorboard$PART" \
        --log-format "$LOG_FORMAT" --log-interval "${LOG_INTERVAL:-$LOG_EVERY}" --log-file "$WORK/train$PART.log"
    end
}

# scored STEP LOG COMMAND...: a command whose log is kept in LOG.
scored() {
    local name=$1 log=$2
    shift 2
    begin "$name" "$log" "$UPDATES"
    run_line "$(quoted "$@") >$(quoted "$log.tmp") 2>&1" || {
        tail -n 3 "$log.tmp" >&2
        fail "$1 failed; its whole output is in $log.tmp"
    }
    run mv "$log.tmp" "$log"
    end
}
