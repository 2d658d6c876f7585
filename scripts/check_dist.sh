#!/usr/bin/env bash
# Builds dist/*.whl and dist/*.tar.gz, and tries each one as a user would: installed into a new environment, in
# a folder that has nothing to do with this repository.
#
#   scripts/check_dist.sh
#
# PYTHON names the interpreter (default python3.11), PIP_FLAGS is given to `pip install`; pip's own variables
# and configuration files count as ever. The build is isolated, so it needs an index. Environments are made in a
# temporary folder (2 GB, 6 GB with a CUDA build of torch) and removed.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
# Those that the script was tried with; what they need comes as it is.
BUILDERS=(build==1.6.1 twine==7.0.0)
read -ra FLAGS <<<"${PIP_FLAGS:-}"

fail() { echo "check_dist.sh: error: $*" >&2; exit 1; }
say() { echo; echo "== $*"; }

root=$PWD
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONWARNINGS=ignore

say "build"
"$PYTHON" -m venv "$away/build" || fail "$PYTHON cannot make an environment; name another with PYTHON"
"$away/build/bin/python" -m pip install -qq ${FLAGS[@]+"${FLAGS[@]}"} -c constraints.txt "${BUILDERS[@]}"
# setuptools would put files that were left there by another version into the wheel.
rm -rf build dist mhe_fairseq.egg-info
"$away/build/bin/python" -m build --outdir dist >"$away/build.log" 2>&1 || { cat "$away/build.log"; fail "the build failed; its output is above"; }
wheels=(dist/*.whl) sdists=(dist/*.tar.gz)
((${#wheels[@]} == 1 && ${#sdists[@]} == 1)) || fail "one wheel and one sdist were expected in dist"
"$away/build/bin/python" -m twine check --strict dist/*

say "contents"
"$PYTHON" -m zipfile -l "${wheels[0]}" | awk 'NR > 1 {print $1}' >"$away/wheel.txt"
"$PYTHON" -m tarfile -l "${sdists[0]}" >"$away/sdist.txt"
for list in wheel sdist; do
    for name in py.typed LICENSE; do
        grep -qE "/$name *\$" "$away/$list.txt" || fail "the $list has no $name"
    done
done
if grep -vE '^(mhe_fairseq/(.*/)?([^/]*\.py|py\.typed)|mhe_fairseq-[^/]*\.dist-info/.*)$' "$away/wheel.txt"; then
    fail "the wheel has files, listed above, that are not part of the package"
fi
if grep -E '/(tests|scripts|examples|docs)/' "$away/sdist.txt"; then
    fail "the sdist has files, listed above, that an installation does not need"
fi
echo "$(wc -l <"$away/wheel.txt") files in the wheel, $(wc -l <"$away/sdist.txt") in the sdist"

say "a new environment"
"$PYTHON" -m venv "$away/venv"
bin=$away/venv/bin
install() { "$bin/python" -m pip install -qq ${FLAGS[@]+"${FLAGS[@]}"} -c "$root/constraints.txt" "$@"; }
# What only the tests need of the corpus is cut short: this is about what was installed.
"$PYTHON" - "$root/examples/translation/data" "$away/text" <<'END'
import lzma, pathlib, sys
source, out = map(pathlib.Path, sys.argv[1:])
out.mkdir()
for split, lines in {"train": 300, "valid": 40, "test": 40}.items():
    for side in ("en", "de"):
        text = lzma.open(source / f"{split}.{side}.xz", "rt", encoding="utf-8").read().split("\n")[:lines]
        (out / f"{split}.{side}").write_text("\n".join(text) + "\n", encoding="utf-8")
END

# try NAME: from the corpus to translations with what is installed.
try() {
    local work=$away/$1
    mkdir "$work"
    (
        cd "$work"
        export PATH=$bin:$PATH
        where=$(python -c 'import mhe_fairseq; print(mhe_fairseq.__file__)' 2>>log)
        [[ $where == "$away/venv/"* ]] || fail "mhe_fairseq is imported from $where, not from the $1"
        mhe --help >>log
        mhe --version
        {
            fairseq-preprocess -s en -t de --joined-dictionary --trainpref ../text/train \
                --validpref ../text/valid --testpref ../text/test --destdir data-bin
            mhe assign --data data-bin -o codes.de
            fairseq-train data-bin --user-dir mhe_fairseq --task mhe_translation \
                --arch mhe_transformer_tiny --mhe-head cascade --mhe-codebook codes.de \
                --criterion mhe_cross_entropy --label-smoothing 0.1 --optimizer adam --lr 0.001 \
                --max-tokens 1000 --required-batch-size-multiple 1 --max-update 5 --cpu --num-workers 0
            mhe analyze checkpoints/checkpoint_best.pt data-bin
            fairseq-generate data-bin --user-dir mhe_fairseq --task mhe_translation --beam 2 \
                --path checkpoints/checkpoint_best.pt --cpu --max-len-b 10 --results-path translations
        } >>log 2>&1
        count=$(grep -c '^H-' translations/generate-test.txt)
        ((count == 40)) || fail "$count translations of 40 sentences"
    ) || { tail -n 20 "$work/log"; fail "the $1 does not work; its last output is above"; }
    echo "the $1 trains and translates"
}

install "${wheels[0]}"
try wheel
"$bin/python" -m pip uninstall -qq -y mhe-fairseq
# Without the dependencies, which are there.
install --no-deps "${sdists[0]}"
try sdist
"$bin/python" -m pip check || fail "the installed packages do not fit together; see above"
say "good: ${wheels[0]} and ${sdists[0]}"
