"""The shell blocks of the documentation run as they are written, one after the other, on a toy corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.house import PLACEHOLDERS, House, is_run, open_house, placeholders
from tests.docs.shell import pages, shell_blocks
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
        if not is_run(block):
            continue
        where = f"{_name(page)}:{block.line}"
        unknown = placeholders(block) - set(PLACEHOLDERS)
        assert not unknown, (
            f"{where}: nobody knows what {', '.join(sorted(unknown))} stands for; tests/docs/house.py says it for "
            f"{', '.join(PLACEHOLDERS)}"
        )
        done = house.run(block.text, room)
        assert done.returncode == 0, f"{where}:\n{block.text}\n{done.stdout[-4000:]}"


def test_a_command_that_fails_is_seen(house: House, tmp_path: Path) -> None:
    done = house.run("mhe plan --dict no-such-file --dim 8\necho not reached", tmp_path)
    assert done.returncode == 1 and "no-such-file" in done.stdout and "not reached" not in done.stdout


def test_the_model_that_placeholders_stand_for_is_ours(house: House, tmp_path: Path) -> None:
    done = house.run(f"mhe signature {house.root}/CHECKPOINT", tmp_path)
    assert done.returncode == 0 and "head:cascade" in done.stdout
