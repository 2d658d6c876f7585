#!/usr/bin/env bash
# Makes the virtual environment VENV (default .venv) and installs this package into it, pinned.
#
#   scripts/make_venv.sh [EXTRAS]        EXTRAS: such as "test,lint"
#
# PYTHON names the interpreter (default: python3.11, else python3.12, else python3 if it is one of them).
# CONSTRAINTS is the file of pins (default constraints.txt), TRITON the version that tests get beside a CPU build
# of torch (default 3.9.0, which goes with that file's numpy); scripts/oldest_torch.sh gives others.
# PIP_FLAGS is given to `pip install`; pip's own variables and configuration files count as ever.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
EXTRAS=${1:-}
CONSTRAINTS=${CONSTRAINTS:-constraints.txt}
TRITON=${TRITON:-3.9.0}
read -ra FLAGS <<<"${PIP_FLAGS:-}"

fail() { echo "make_venv.sh: error: $*" >&2; exit 1; }

# Runs it, because a name on the PATH may be a launcher for a Python that is not there.
right_version() { "$1" -c 'import sys; exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null; }
# Debian and Ubuntu ship Python without the second of these.
can_make_venv() { "$1" -c 'import venv, ensurepip, lzma, ssl' 2>/dev/null; }

find_python() {
    local name lacking=""
    for name in ${PYTHON:-python3.11 python3.12 python3}; do
        right_version "$name" || continue
        if can_make_venv "$name"; then echo "$name"; return; fi
        lacking=${lacking:-$name}
    done
    if [[ -n $lacking ]]; then
        # The package that goes with this very Python: python3-venv is for the release's own.
        local package
        package=$("$lacking" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        fail "$lacking has no venv module; install it with: sudo apt-get install $package"
    elif [[ -n ${PYTHON:-} ]]; then
        fail "PYTHON=$PYTHON is not a working Python 3.11 or 3.12; install one with:" \
            "sudo apt-get install python3.11 python3.11-venv (or python3.12 python3.12-venv)"
    fi
    fail "Python 3.11 or 3.12 is needed and there is none; install one with:" \
        "sudo apt-get install python3.11 python3.11-venv (or python3.12 python3.12-venv;" \
        "if your release has neither, build one with pyenv and give make PYTHON=/path/to/python3.12)"
}

# The mark outlives a killed installation, whose half-copied packages pip would take for whole ones.
mark=$VENV/.installing
if [[ -e $mark || ! -x $VENV/bin/python ]] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
fi
touch "$mark"
echo "installing mhe-fairseq${EXTRAS:+ [$EXTRAS]} and its dependencies, in the versions of $CONSTRAINTS (a minute or more)"
# -qq: errors only.
"$VENV/bin/python" -m pip install -qq --disable-pip-version-check ${FLAGS[@]+"${FLAGS[@]}"} \
    -c "$CONSTRAINTS" -e ".${EXTRAS:+[$EXTRAS]}" ||
    fail "pip could not install everything; its message is above, and the same command may be run again"
# Tests run the GPU kernels in Triton's interpreter. A CUDA build of torch has brought the triton that it
# wants; beside a CPU build there is none, and TRITON must go with the numpy that CONSTRAINTS pins.
if [[ ,$EXTRAS, == *,test,* ]] && "$VENV/bin/python" -c 'import torch; exit(torch.version.cuda is not None)'; then
    "$VENV/bin/python" -m pip install -qq --disable-pip-version-check ${FLAGS[@]+"${FLAGS[@]}"} --no-deps \
        "triton==$TRITON" || fail "pip could not install triton==$TRITON; its message is above"
fi
rm -f "$mark"
