"""The shell blocks of the documentation run as they are written, one after the other, on a toy corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.docs.markdown import Block
from tests.docs.house import House, is_run, not_to_be_run, open_house
from tests.docs.shell import commands, pages, shell_blocks
from tests.helpers import REPO

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with open_house() as house:
        yield house


def _name(page: Path) -> str:
    return str(page.relative_to(REPO))


WITH_BLOCKS = [page for page in pages() if any(is_run(block) for block in shell_blocks(page))]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=_name)
def test_blocks_of_a_page(house: House, page: Path, tmp_path: Path) -> None:
    room = house.room(page, tmp_path)
    for block in shell_blocks(page):
        if is_run(block):
            where = f"{_name(page)}:{block.line}"
            assert not (why := not_to_be_run(block)), f"{where}: {why}"
            done = house.run(block.text, room)
            assert done.returncode == 0, f"{where}:\n{block.text}\n{done.stdout[-4000:]}"


def test_the_commands_of_the_readme_are_run() -> None:
    """So that the test above cannot pass by running nothing."""
    blocks = [block for block in shell_blocks(REPO / "README.md") if is_run(block)]
    run = {command.words[0] for block in blocks for command in commands(block)}
    assert {"mhe", "fairseq-train", "fairseq-generate", "fairseq-eval-lm"} <= run


@pytest.mark.parametrize("text", ["make quickstart", "mhe plan --dict NOBODYS-FILE --dim 8"])
def test_blocks_that_need_a_word(text: str) -> None:
    assert not_to_be_run(Block(Path("page.md"), 1, "sh", (), text))
    assert not is_run(Block(Path("page.md"), 1, "sh", ("download",), text))


def test_a_command_that_fails_is_seen(house: House, tmp_path: Path) -> None:
    done = house.run("mhe plan --dict no-such-file --dim 8\necho not reached", tmp_path)
    assert done.returncode == 1 and "no-such-file" in done.stdout and "not reached" not in done.stdout


def test_the_model_that_placeholders_stand_for_is_ours(house: House, tmp_path: Path) -> None:
    done = house.run(f"mhe signature {house.root}/CHECKPOINT", tmp_path)
    assert done.returncode == 0 and "head:cascade" in done.stdout
