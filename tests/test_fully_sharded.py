"""``--ddp-backend fully_sharded``: two ranks with half of every parameter each train what one rank does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers import REPO
from tests.test_ranks import HEADS, check_alike, run_by_one_and_two

pytest.importorskip(
    "fairscale", reason="fairseq's fully_sharded is fairscale's: pip install fairscale==0.4.13"
)
pytestmark = pytest.mark.slow


def test_two_ranks_train_what_one_does(toy_data: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(REPO / "tests" / "fsdp_on_cpu"), os.environ.get("PYTHONPATH", "")])
    runs = [(name, "fully_sharded") for name in HEADS]
    ended = run_by_one_and_two(runs, toy_data, tmp_path, {"PYTHONPATH": paths})
    for run, (one, two) in ended.items():
        check_alike(one, two, tmp_path.joinpath(*run), atol=1e-3)
