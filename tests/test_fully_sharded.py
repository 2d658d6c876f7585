"""``--ddp-backend fully_sharded``: two ranks with half of every parameter each train what one rank does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands import logged, train, train_line
from tests.helpers import REPO
from tests.ranks import run_lines
from tests.test_ranks import COMMON, HEADS, UPDATES, same_weights, updates

pytest.importorskip(
    "fairscale", reason="fairseq's fully_sharded is fairscale's: pip install fairscale==0.4.13"
)
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", HEADS)
def test_two_ranks_train_what_one_does(name: str, toy_data: Path, tmp_path: Path) -> None:
    flags = [*COMMON, *HEADS[name], *updates(UPDATES)]
    alone = train(toy_data, tmp_path / "one", *flags, "--update-freq", "2")
    line = train_line(toy_data, tmp_path / "two", *flags, "--ddp-backend", "fully_sharded")
    paths = os.pathsep.join([str(REPO / "tests" / "fsdp_on_cpu"), os.environ.get("PYTHONPATH", "")])
    ended = run_lines([line, line], tmp_path / "logs", env={"PYTHONPATH": paths})
    assert not any(status for status, _ in ended), "\n".join(said[-4000:] for _, said in ended)
    expected = logged(alone.stdout + alone.stderr, "loss")
    assert logged(ended[0][1], "loss") == pytest.approx(expected, abs=2e-3)
    same_weights(tmp_path / "one", tmp_path / "two", atol=1e-3)
