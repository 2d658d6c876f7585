"""Every shell block of the documentation is shell, and the parsers of its commands take their flags."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from scripts.docs.markdown import REPO
from tests.docs.checks import problems
from tests.docs.shell import commands, pages, shell_blocks

pytestmark = pytest.mark.slow


def test_the_documentation_has_no_problem() -> None:
    found = problems(pages())
    assert not found, "\n".join(found)


def test_the_documentation_was_found() -> None:
    """So that the test above cannot pass by looking at nothing."""
    read = {
        command.words[0] for page in pages() for block in shell_blocks(page) for command in commands(block)
    }
    assert {"fairseq-train", "fairseq-generate", "mhe", "make", "python"} <= read
    assert {REPO / "README.md", REPO / "docs" / "gpu.md"} <= set(pages())


GOOD = """
    Text.

    ```sh
    mhe plan --dict DICT --dim D --beam N               # a comment's --flag is none
    mhe plan ... --gpu a100 && mhe assign --data DATA-BIN -o codes > log 2>&1
    for seed in 1 2; do
        fairseq-train DATA-BIN --user-dir mhe_fairseq --arch mhe_transformer --seed $seed \\
            --mhe-head cascade --criterion mhe_cross_entropy --save-dir "runs/$seed"
    done
    fairseq-train DATA-BIN ... --mhe-codebook codes
    python -m pytest --no-such-flag
    python scripts/gpu/update_waits.py --json FILE -- DATA-BIN --arch transformer
    cat FILE | fairseq-interactive DATA-BIN --path CHECKPOINT
    python scripts/gpu/check.py --parts a
    make gpu-check GPU_FLAGS="--parts a"
    ```

    ```python
    this is no shell
    ```

    - In a list:

        ```sh gpu hours
        torchrun --nproc-per-node 8 $(which fairseq-train) DATA-BIN --arch transformer --fp16
        ```
"""

BAD = {
    "mhe plan --dict DICT --dim 8 --bandwith 3": "unrecognized arguments: --bandwith",
    "mhe plan ... --bandwith 3": "unrecognized arguments: --bandwith",
    "mhe plan --dict DICT --dim wide": "argument --dim: invalid",
    "mhe plna --dict DICT": "no command of mhe",
    "mhe bench trian": "no command of mhe bench",
    "fairseq-train D --user-dir mhe_fairseq --arch mhe_transformer --mhe-haed x": "arguments: --mhe-haed",
    "fairseq-train D ... --mhe-haed x": "arguments: --mhe-haed",
    "torchrun --nnodes 2 $(which fairseq-train) D --arch transformer --haed x": "arguments: --haed",
    "if true; then fairseq-generate D --path C --baem 5; fi": "arguments: --baem",
    "fairseq-train D --user-dir mhe_fairseq --arch mhe_transfomer": "invalid choice: 'mhe_transfomer'",
    "fairseq-generate D --task mhe_translation --path C": "mhe_translation needs --user-dir mhe_fairseq",
    "fairseq-train D --user-dir mhe_fairseq": "it names no --arch",
    "fairseq-hydra-train --config-dir examples/translation/config --config-name gone": "has no gone.yaml",
    "fairseq-score --sys x": "is no command that this project knows",
    "python scripts/gone.py --flag": "scripts/gone.py does not exist",
    "scripts/gone.sh": "scripts/gone.sh does not exist",
    "python scripts/gpu/check.py --prats a": "unrecognized arguments: --prats",
    "python -m scripts.gpu.check --prats a": "unrecognized arguments: --prats",
    "make quikstart": "make has no target quikstart",
    'make gpu-check GPU_FLAGS="--prats a"': "unrecognized arguments: --prats",
    "QUIKSTART_DIR=x make quickstart": "nothing reads QUIKSTART_DIR",
    "for x in; do": "bash cannot read it",
    "echo 'open": "a quote is not closed",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The problems of a page with GOOD and one with BAD, a block a line. (Parsers load once.)"""
    folder = tmp_path_factory.mktemp("pages")
    good, bad = folder / "good.md", folder / "bad.md"
    good.write_text(textwrap.dedent(GOOD))
    bad.write_text("".join(f"```sh\n{line}\n```\n" for line in BAD))
    return problems([good, bad])


def test_what_is_right_is_taken(found: list[str]) -> None:
    assert [text for text in found if "good.md" in text] == []


@pytest.mark.parametrize("number, line", list(enumerate(BAD)), ids=BAD)
def test_what_is_wrong_is_named_with_its_line(found: list[str], number: int, line: str) -> None:
    here = [text for text in found if f"bad.md:{3 * number + 2}: " in text]
    assert here and any(BAD[line] in text for text in here), here


def test_an_unknown_word_after_the_fence(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh gpus\ntrue\n```\n")
    found = problems([page])
    assert len(found) == 1 and "'gpus'" in found[0] and "page.md:2" in found[0]
