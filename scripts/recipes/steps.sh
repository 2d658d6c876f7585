# Functions of scripts that go from step to step: sourced, not run, by a script with `set -euo pipefail`.
#
# A command is printed before it runs and listed in $WORK/commands.sh. A step that is done is skipped by
# another run, training continues from its last checkpoint. The script sets NAME (its own, for errors) and
# then calls settle_environment, open_work, keep_settings and list_commands; after these, steps:
#
#     begin STEP OUTPUT [KEY]
#     run COMMAND...
#     end

fail() { echo "$NAME: error: $*" >&2; exit 1; }

# need PROGRAM...: those that lack end it, with the words of $HOW_TO_INSTALL.
need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || fail "$program is not on the PATH; $HOW_TO_INSTALL"
    done
}

settle_environment() {
    # A bar on a terminal, a line every LOG_INTERVAL updates in a file.
    if [[ -t 2 ]]; then LOG_FORMAT=${LOG_FORMAT:-tqdm}; else LOG_FORMAT=${LOG_FORMAT:-simple}; fi
    # Threads that wait sleep: spinning, they would slow training tenfold where other programs use the cores.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
    # fairseq makes hydra warn at length about its own use of it, on every command.
    export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::UserWarning}
}

# open_work WHAT GIVE: take the folder $WORK for ourselves. WHAT it is to hold; GIVE names how to choose
# another, such as "give --out".
open_work() {
    GIVE=$2
    [[ ! -e $WORK || -e $WORK/settings.txt || -z $(ls "$WORK") ]] ||
        fail "$WORK holds something other than $1; $GIVE an empty or new folder"
    mkdir -p "$WORK"
    # Held by the commands too: an orphan of a killed run goes on writing checkpoints and must end first.
    # Some, such as fairseq's data workers, notice within seconds that they are orphans.
    if command -v flock >/dev/null; then
        exec 9>"$WORK/.lock"
        local status=0
        flock -w 8 9 || status=$?
        # Other numbers than 1: it cannot lock, as on Lustre and NFS without locks.
        ((status != 1)) || fail "another run is working in $WORK; wait for it, or $GIVE another folder"
        ((status == 0)) ||
            echo "$NAME: $WORK cannot be locked; make sure that no other run is working there" >&2
    fi
}

# keep_settings LINE...: what was started with other settings cannot be continued with these.
keep_settings() {
    local settings
    settings=$(printf '%s\n' "$@")
    if [[ -e $WORK/settings.txt ]]; then
        [[ $settings == "$(<"$WORK/settings.txt")" ]] ||
            fail "$WORK was started with other settings (see $WORK/settings.txt);" \
                "$GIVE another folder, or remove it to start again"
    else
        echo "$settings" >"$WORK/.settings.tmp"
        mv "$WORK/.settings.tmp" "$WORK/settings.txt"
    fi
}

# list_commands WHAT: begin $WORK/commands.sh, the commands of WHAT.
list_commands() {
    COMMANDS=$WORK/commands.sh
    cat >"$COMMANDS" <<END
# The commands of $1, in order. Run from the root of the repository, after
# source .venv/bin/activate
set -e
END
    mkdir -p "$WORK/done"
    redo=0
    skip=0
}

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

ONLY="" STAGE=""

# stage NAME: steps from here on belong to it. With ONLY=NAME no other stage's are done: those before must have
# been done, and those after are left.
stage() {
    if [[ -n $ONLY && $ONLY == "$STAGE" ]]; then
        echo "$ONLY: done; the other stages are left out"
        exit 0
    fi
    STAGE=$1
}

# begin STEP OUTPUT [KEY]: skip it if it was done with the same KEY, its OUTPUT is there and so were all steps
# before it.    end: note that it is done, and its seconds.
begin() {
    step=$1 key=${3:-} skip=0 note="" began=$SECONDS
    if ((!redo)) && [[ -e $2 && -e $WORK/done/$step && $(head -n 1 "$WORK/done/$step") == "key $key" ]]; then
        skip=1
        echo "$step: done before, skipped"
    else
        [[ -z $ONLY || $ONLY == "$STAGE" ]] ||
            fail "$step has to be done first; run the same with --only $STAGE, in one process"
        redo=1
    fi
}
end() {
    if ((skip)); then return; fi
    printf 'key %s\n%s\n%s\n' "$key" $((SECONDS - began)) "$note" >"$WORK/done.tmp"
    mv "$WORK/done.tmp" "$WORK/done/$step"
}

# fairseq writes the first file of a save whole or not at all, but copies it to the others, and a kill can
# cut a copy short. Then the newest uncut one takes its place.
whole() { python -m zipfile -t "$1" >/dev/null 2>&1; }
mend_last_checkpoint() {
    local last=$1/checkpoint_last.pt other
    if [[ ! -e $last ]] || whole "$last"; then return; fi
    echo "$last is incomplete: its copy was interrupted"
    rm "$last"
    while IFS= read -r other; do
        if whole "$other"; then
            echo "continuing from $other"
            cp "$other" "$last.tmp"
            mv "$last.tmp" "$last"
            return
        fi
    done < <(ls -t "$1"/checkpoint_[0-9]*.pt 2>/dev/null)
}

# continue_training FOLDER: in a step that trains, before its command: see what there is to continue from.
continue_training() {
    if ((skip)); then return; fi
    mend_last_checkpoint "$1"
    if [[ -e $1/checkpoint_last.pt ]]; then
        note="since the last interruption"
        echo "$step: continues from $1/checkpoint_last.pt"
    fi
}
