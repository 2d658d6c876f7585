"""What ends a training from outside, and what is there afterwards: a killed rank, a full disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import command_forks
from tests.commands import CRITERION, train, train_line
from tests.helpers import resolve_command, run_command
from tests.ranks import run_ranks, start_ranks, weights

pytestmark = pytest.mark.slow

#: With dropout, so that going on needs the random numbers too. An epoch has some 70 updates of two ranks.
FLAGS = [
    *CRITERION, "--max-tokens", "40", "--share-all-embeddings", "--update-epoch-batch-itr", "True",
    "--no-epoch-checkpoints", "--validate-interval", "100", "--save-interval-updates", "4",
    "--keep-interval-updates", "1",
]  # fmt: skip


def same(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(theirs[name], value), name


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)


def test_a_killed_rank_ends_the_others_and_the_training_goes_on(toy_data: Path, tmp_path: Path) -> None:
    updates = ["--max-update", "40"]
    run_ranks(train_line(toy_data, tmp_path / "whole", *FLAGS, *updates), tmp_path / "logs whole")

    line = train_line(toy_data, tmp_path / "cut", *FLAGS, *updates)
    ranks = start_ranks(line, tmp_path / "logs cut")
    try:
        wait_for(tmp_path / "cut" / "checkpoint_1_4.pt", ranks[1])
        os.kill(ranks[1].pid, signal.SIGKILL)
        assert ranks[0].wait(timeout=120) == 1
    finally:
        for rank in ranks:
            rank.kill()
    command_forks.settle()
    said = (tmp_path / "logs cut" / "rank0.log").read_text()
    last = said.rstrip().splitlines()[-1]
    assert last.startswith("mhe_fairseq: error: the connection to another rank was lost"), said[-3000:]
    assert "Traceback" not in said

    said = run_ranks(line, tmp_path / "logs again")[0]
    assert "Loaded checkpoint" in said and "epoch 1 @" in said
    same(tmp_path / "whole", tmp_path / "cut")


def test_a_file_that_cannot_be_written_keeps_the_last_checkpoint(toy_data: Path, tmp_path: Path) -> None:
    train(toy_data, tmp_path / "whole", *FLAGS, "--max-update", "12")
    train(toy_data, tmp_path / "cut", *FLAGS, "--max-update", "5")
    last = tmp_path / "cut" / "checkpoint_last.pt"
    before = last.read_bytes()
    line = resolve_command(train_line(toy_data, tmp_path / "cut", *FLAGS, "--max-update", "12"))
    # The log has room, a checkpoint has not. (In blocks of 1,024 bytes.)
    limit = len(before) // 1024 // 2
    done = run_command(["bash", "-c", f'ulimit -f {limit}; exec "$@"', "_", *line], check=False)
    assert done.returncode == 1
    said = done.stderr.rstrip().splitlines()[-1]
    assert (
        said.startswith("mhe_fairseq: error: checkpoint ")
        and "checkpoint_1_8.pt could not be written" in said
    )
    assert "the checkpoints before it are as they were" in said and "Traceback" not in done.stderr
    assert last.read_bytes() == before
    assert not list(last.parent.glob("*.tmp")) and not list(last.parent.glob("*_8.pt"))
    train(toy_data, tmp_path / "cut", *FLAGS, "--max-update", "12")
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint(toy_data: Path, small_disk: Path, tmp_path: Path) -> None:
    train(toy_data, small_disk / "cut", *FLAGS, "--max-update", "5")
    last = small_disk / "cut" / "checkpoint_last.pt"
    before = last.read_bytes()
    # Room for the first file of a save, and not for its copies.
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free - int(1.5 * len(before))))
    done = train(toy_data, small_disk / "cut", *FLAGS, "--max-update", "12", check=False)
    assert done.returncode == 1
    said = done.stderr.rstrip().splitlines()[-1]
    assert re.search(
        r"checkpoint_(best|last)\.pt could not be written \(No space left on device; [\d,]+ bytes", said
    )
    assert last.read_bytes() == before
    assert not list(last.parent.glob("*.tmp"))
    (small_disk / "filler").unlink()
    train(toy_data, small_disk / "cut", *FLAGS, "--max-update", "12")
    train(toy_data, tmp_path / "whole", *FLAGS, "--max-update", "12")
    same(tmp_path / "whole", small_disk / "cut")
