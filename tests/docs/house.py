"""What the placeholders of the documentation stand for when its shell blocks are run.

A placeholder (`DATA-BIN`) is a file or folder of that very name in the folder where the block runs, so that
a block runs as it is written. A page's blocks run one after the other in a folder of the page's own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.docs.markdown import NEEDS, Block
from tests.command_forks import COMMANDS
from tests.docs import server
from tests.docs.parsing import LEFT_OUT
from tests.docs.shell import commands, shell_blocks
from tests.helpers import REPO, command_env, write_toy_corpus

_TRAIN = "fairseq-train {} --user-dir mhe_fairseq --criterion mhe_cross_entropy --optimizer adam --lr 1e-3"
_TRAIN += " --max-tokens 500 --required-batch-size-multiple 1 --log-format json"
_TRANSLATION = (
    _TRAIN.format("DATA-BIN") + " --task mhe_translation --arch mhe_transformer --share-all-embeddings"
)

#: Placeholders that blocks may use -> how they are made, by bash, in this order.
PLACEHOLDERS = {
    "CORPUS": "ls CORPUS/train.en CORPUS/train.de",
    "TEXT-FILE": "cat CORPUS/*.de > TEXT-FILE",
    "TEXT": "mkdir TEXT; for split in train valid test; do cp CORPUS/$split.de TEXT/$split; done",
    "LABELLED": "mkdir LABELLED; for split in train valid test; do"
    ' awk \'{print "kind" NR % 10 "\\t" $0}\' CORPUS/$split.de > LABELLED/$split.tsv; done',
    "DOCUMENTS": "mkdir DOCUMENTS; for split in train valid test; do"
    ' awk \'{print "kind" NR % 10 " half" NR % 2 "\\t" $0}\' CORPUS/$split.de > DOCUMENTS/$split.tsv; done',
    "DATA-BIN": "fairseq-preprocess -s en -t de --joined-dictionary --destdir DATA-BIN --workers 1"
    " --trainpref CORPUS/train --validpref CORPUS/valid --testpref CORPUS/test",
    "NEW-BIN": "fairseq-preprocess -s en -t de --joined-dictionary --destdir NEW-BIN --workers 1"
    " --nwordssrc 60 --trainpref CORPUS/train --validpref CORPUS/valid --testpref CORPUS/test",
    "LM-DATA-BIN": "fairseq-preprocess --only-source --destdir LM-DATA-BIN --workers 1"
    " --trainpref CORPUS/train.de --validpref CORPUS/valid.de --testpref CORPUS/test.de",
    "MONO-BIN": "for lang in en de; do fairseq-preprocess --only-source --srcdict DATA-BIN/dict.de.txt"
    " --destdir MONO-BIN/$lang --workers 1 --trainpref CORPUS/train.$lang --validpref CORPUS/valid.$lang;"
    " done && cp DATA-BIN/dict.de.txt MONO-BIN/dict.txt",
    "DICT": "cp DATA-BIN/dict.de.txt DICT",
    "LM-DICT": "cp LM-DATA-BIN/dict.txt LM-DICT",
    "CHECKPOINTS": f"{_TRANSLATION} --mhe-head cascade --save-interval-updates 1 --save-dir CHECKPOINTS"
    " > TRAIN-LOG",
    "CHECKPOINT": "cp CHECKPOINTS/checkpoint_best.pt CHECKPOINT",
    "SAMPLING-CHECKPOINT": f"{_TRANSLATION} --mhe-head sampling --save-dir made > OTHER-TRAIN-LOG"
    " && cp made/checkpoint_best.pt SAMPLING-CHECKPOINT",
    "STOCK-CHECKPOINT": "fairseq-train DATA-BIN --arch transformer --share-all-embeddings --optimizer adam"
    " --lr 1e-3 --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 500"
    " --required-batch-size-multiple 1 --save-dir made-stock > STOCK-TRAIN-LOG"
    " && cp made-stock/checkpoint_best.pt STOCK-CHECKPOINT",
    "TRAIN-LOG": "grep -q valid TRAIN-LOG",
    "OTHER-TRAIN-LOG": "grep -q valid OTHER-TRAIN-LOG",
    "LM-CHECKPOINT": f"{_TRAIN.format('LM-DATA-BIN')} --task language_modeling --tokens-per-sample 40"
    " --arch mhe_transformer_lm --mhe-head cascade --save-dir made-lm"
    " && cp made-lm/checkpoint_best.pt LM-CHECKPOINT",
}

#: Needs of a block that is run all the same: its trainings are shortened.
_SHORTENED = {"minutes", "hours"}
#: mhe bench; and tests run as tests.
_LONG = {"bench", "pytest"}
#: They install, download or change what is not in the folder of the block.
_NEVER = {"make", "pip", "git", "apt-get", "source", "curl", "wget"}


def is_run(block: Block) -> bool:
    """Blocks without a word after ```sh; of those that take hours, the ones that the server shortens. Not one
    with arguments left out."""
    inside = list(commands(block))
    if (
        not inside
        or not set(block.words) <= _SHORTENED
        or any(LEFT_OUT in command.words for command in inside)
    ):
        return False
    if any(_LONG.intersection(command.words) for command in inside):
        return False
    return not block.words or all(command.words[0] in COMMANDS for command in inside)


def not_to_be_run(block: Block) -> str:
    """Why a block needs a word after ```sh, "" if it does not."""
    for command in commands(block):
        if command.words[0] in _NEVER:
            return f"{command.words[0]} is not run by a test: mark the block with one of {', '.join(NEEDS)}"
    unknown = placeholders(block) - set(PLACEHOLDERS)
    if unknown:
        names, known = ", ".join(sorted(unknown)), ", ".join(PLACEHOLDERS)
        return f"nobody knows what {names} stands for; tests/docs/house.py says it for {known}"
    return ""


def placeholders(block: Block) -> set[str]:
    """Words in capitals that begin an argument of a command, or its value."""
    pattern = re.compile(r"(?:[\w-]+=)?([A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*)(?![\w=@-])")
    words = (word for command in commands(block) for word in command.words[1:])
    return {match[1] for word in words if (match := pattern.match(word))}


@dataclass
class House:
    """Where blocks run.

    Attributes:
        root: has what the placeholders stand for.
        path: of the commands, for PATH.
    """

    root: Path
    path: Path

    def run(self, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """A shell block in ``folder``; the first command that fails ends it."""
        env = command_env()
        env["PATH"] = f"{self.path}{os.pathsep}{env['PATH']}"
        # Processes that are left behind hold a pipe, not a file.
        with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                timeout=600,
            )  # fmt: skip
            log.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, log.read())

    def room(self, page: Path, folder: Path) -> Path:
        """A folder for the blocks of a page: files of the repository, placeholders and quickstart, by links.

        A page that reads checkpoints/ without training into it speaks of a model of the reader's.
        """
        room = folder / "room"
        room.mkdir(parents=True)
        _link(REPO, room, {"mhe_fairseq", "scripts", "examples", "docs", "tests", "pyproject.toml"})
        _link(self.root, room, set(PLACEHOLDERS))
        (room / "quickstart").mkdir()
        (room / "quickstart" / "data-bin").symlink_to(self.root / "DATA-BIN")
        text = "".join(block.text for block in shell_blocks(page))
        if "--save-dir checkpoints" not in text:
            (room / "checkpoints").mkdir()
            for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
                shutil.copy(self.root / "CHECKPOINT", room / "checkpoints" / name)
        return room


def _link(source: Path, target: Path, names: set[str]) -> None:
    for name in names:
        if (source / name).exists():
            (target / name).symlink_to(source / name)


@contextmanager
def open_house() -> Iterator[House]:
    """Make what the placeholders stand for, by the commands that a user would type."""
    with tempfile.TemporaryDirectory(prefix="mhe-docs-") as name:
        root = Path(name)
        write_toy_corpus(root / "CORPUS", {"train": 600, "valid": 60, "test": 60})
        for path in list((root / "CORPUS").iterdir()):
            path.rename(path.with_suffix({".src": ".en", ".tgt": ".de"}[path.suffix]))
        _link(REPO, root, {"mhe_fairseq"})
        house = House(root, root / "bin")
        process = server.start(root)
        try:
            for placeholder, command in PLACEHOLDERS.items():
                done = house.run(command, root)
                if done.returncode:
                    raise RuntimeError(f"{placeholder} could not be made:\n{done.stdout[-4000:]}")
            yield house
        finally:
            process.terminate()
            process.wait()
