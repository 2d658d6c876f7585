"""Two ranks with half of each batch, and one rank that takes the halves one after the other: one training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.commands import CRITERION, logged, train, train_line
from tests.helpers import resolve_command, run_command
from tests.ranks import run_ranks, weights

pytestmark = pytest.mark.slow

#: Without dropout, whose masks are drawn by each rank for itself.
COMMON = [
    *CRITERION, "--dropout", "0", "--update-epoch-batch-itr", "True", "--no-epoch-checkpoints",
    "--validate-interval", "100",
]  # fmt: skip
UPDATES = 6
HEADS = {
    "softmax": ["--mhe-head", "softmax"],
    "product": ["--mhe-head", "product", "--share-all-embeddings"],
    "mixture": ["--mhe-head", "product", "--mhe-mixtures", "2"],
    "cascade": ["--mhe-head", "cascade", "--share-all-embeddings"],
    "cascade of three digits": ["--mhe-head", "cascade", "--mhe-lengths", "4,4,8"],
    "bottleneck": ["--mhe-head", "cascade", "--mhe-bottleneck", "8", "--mhe-smoothing", "per-level"],
    "sampling": ["--mhe-head", "sampling", "--mhe-groups", "3", "--share-all-embeddings"],
    "sampling own": ["--mhe-head", "sampling", "--mhe-sampling", "own"],
}


def updates(count: int) -> list[str]:
    return ["--max-update", str(count)]


def same_weights(one: Path, other: Path, atol: float = 2e-5) -> None:
    """Weights that moved by up to 0.03 are alike but for rounding, which Adam enlarges."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=atol, msg=name)


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "pytorch_ddp") for name in HEADS), ("cascade", "legacy_ddp")]
)
def test_two_ranks_train_what_one_does(name: str, backend: str, toy_data: Path, tmp_path: Path) -> None:
    flags = [*COMMON, *HEADS[name], *updates(UPDATES)]
    alone = train(toy_data, tmp_path / "one", *flags, "--update-freq", "2")
    two = train_line(toy_data, tmp_path / "two", *flags, "--ddp-backend", backend)
    said = run_ranks(two, tmp_path / "logs")
    for key in ("loss", "nll_loss", "gnorm"):
        expected = logged(alone.stdout + alone.stderr, key)
        assert len(expected) == UPDATES
        # A log has three digits. Rank 0 speaks for both.
        assert logged(said[0], key) == pytest.approx(expected, abs=2e-3)
    assert logged(said[1], "loss") == []
    same_weights(tmp_path / "one", tmp_path / "two")


def test_a_checkpoint_of_two_ranks_is_one_ranks_and_the_reverse(toy_data: Path, tmp_path: Path) -> None:
    flags = [*COMMON, *HEADS["cascade"]]
    whole = train(toy_data, tmp_path / "whole", *flags, *updates(UPDATES), "--update-freq", "2")
    expected = logged(whole.stdout + whole.stderr, "loss")
    # Two ranks, then one; one, then two. At the end of an epoch: in the middle of one fairseq's iterator
    # remembers how many batches a rank has had, and with another number of ranks these are other batches.
    cut = 4
    run_ranks(train_line(toy_data, tmp_path / "a", *flags, *updates(cut)), tmp_path / "logs a")
    one = train(toy_data, tmp_path / "a", *flags, *updates(UPDATES), "--update-freq", "2")
    assert logged(one.stdout + one.stderr, "loss") == pytest.approx(expected[cut:], abs=2e-3)
    train(toy_data, tmp_path / "b", *flags, *updates(cut), "--update-freq", "2")
    two = run_ranks(train_line(toy_data, tmp_path / "b", *flags, *updates(UPDATES)), tmp_path / "logs b")
    assert logged(two[0], "loss") == pytest.approx(expected[cut:], abs=2e-3)
    for folder in ("a", "b"):
        same_weights(tmp_path / "whole", tmp_path / folder)


def test_torchrun_starts_ranks_of_one_training(toy_data: Path, tmp_path: Path) -> None:
    """On CPUs fairseq would leave each of its processes to train by itself."""
    flags = [*COMMON, *HEADS["cascade"], *updates(UPDATES)]
    alone = train(toy_data, tmp_path / "one", *flags, "--update-freq", "2")
    command, *rest = resolve_command(train_line(toy_data, tmp_path / "two", *flags))
    launcher = ["torchrun", "--standalone", "--nproc-per-node", "2", "--no-python"]
    said = run_command([*launcher, command, *rest])
    expected = logged(alone.stdout + alone.stderr, "loss")
    assert logged(said.stdout + said.stderr, "loss") == pytest.approx(expected, abs=2e-3)
    same_weights(tmp_path / "one", tmp_path / "two")
