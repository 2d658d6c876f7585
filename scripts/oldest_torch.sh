#!/usr/bin/env bash
# Runs the quick tests with the oldest torch that setup.py allows, in an environment of its own.
#
#   scripts/oldest_torch.sh [PYTEST ARGUMENTS]      default: all tests that are not slow, in two processes
#
# VENV names the environment (default .venv-oldest; kept for the next run, 6 GB with a CUDA build of torch).
# PYTHON and PIP_FLAGS are as for scripts/make_venv.sh. Whether torch comes as a CPU or a CUDA build depends on
# how pip is configured; either will do, no GPU is used.
set -euo pipefail
cd "$(dirname "$0")/.."

export VENV=${VENV:-.venv-oldest}

# What goes with torch 2.6.0, in place of the pins of the same names in constraints.txt: torchaudio and sympy
# as it asks for them, the triton of its own time, and a numpy before 2.4, with which that triton's interpreter
# fails ("only 0-dimensional arrays can be converted to Python scalars").
OLDEST=(torch==2.6.0 torchaudio==2.6.0 sympy==1.13.1 numpy==2.3.5)
export TRITON=3.2.0

fail() { echo "oldest_torch.sh: error: $*" >&2; exit 1; }

allowed=$(sed -n 's/^ *"torch>=\([0-9.]*\)",$/\1/p' setup.py)
[[ ${OLDEST[0]} == "torch==$allowed" || ${OLDEST[0]} == "torch==$allowed.0" ]] ||
    fail "setup.py allows torch>=${allowed:-?} and this script tests ${OLDEST[0]}; change one of them"

CONSTRAINTS=$(mktemp)
trap 'rm -f "$CONSTRAINTS"' EXIT
export CONSTRAINTS
names=$(IFS='|'; echo "${OLDEST[*]%%==*}")
{ grep -vE "^($names)==" constraints.txt; printf '%s\n' "${OLDEST[@]}"; } >"$CONSTRAINTS"
scripts/make_venv.sh test,plot

BIN=$(cd "$VENV/bin" && pwd)
export PATH=$BIN:$PATH OMP_NUM_THREADS=1
python -c 'import sys, numpy, torch, triton; print("Python %d.%d," % sys.version_info[:2], "torch", torch.__version__,
    "triton", triton.__version__, "numpy", numpy.__version__)'
if (($#)); then python -m pytest -q "$@"; else python -m pytest -q -n 2 --dist loadfile -m "not slow"; fi
