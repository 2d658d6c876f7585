"""Two ranks with half of each batch, and one rank that takes the halves one after the other: one training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.commands import CRITERION, logged, train, train_line
from tests.helpers import resolve_command, run_command
from tests.ranks import Ended, run_trainings, weights

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
    "sampling, exact in the end": [
        "--mhe-head", "sampling", "--mhe-groups", "3", "--mhe-exact-after", "3", "--mhe-chunk", "32",
    ],
    "sampling predicted": ["--mhe-head", "sampling", "--mhe-sampling", "predicted", "--mhe-groups", "3"],
    "sampling own": ["--mhe-head", "sampling", "--mhe-sampling", "own"],
}  # fmt: skip


def updates(count: int) -> list[str]:
    return ["--max-update", str(count)]


def same_weights(one: Path, other: Path, atol: float = 2e-5) -> None:
    """Weights that moved by up to 0.03 are alike but for rounding, which Adam enlarges."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=atol, msg=name)


#: Each head by torch's DDP, fairseq's default, and one by fairseq's own.
RUNS = [*((name, "pytorch_ddp") for name in HEADS), ("cascade", "legacy_ddp")]


def run_by_one_and_two(
    runs: list[tuple[str, str]], data: Path, folder: Path, env: dict[str, str] | None = None
) -> dict[tuple[str, str], tuple[Ended, list[Ended]]]:
    """Train each head by one rank, and by two. Weights are in ``folder``/HEAD/BACKEND/one and two."""
    trainings = []
    for name, backend in runs:
        flags, place = [*COMMON, *HEADS[name], *updates(UPDATES)], folder / name / backend
        trainings.append([train_line(data, place / "one", *flags, "--update-freq", "2")])
        trainings.append([train_line(data, place / "two", *flags, "--ddp-backend", backend)] * 2)
    ended = run_trainings(trainings, folder / "logs", env)
    return {run: (ended[2 * n][0], ended[2 * n + 1]) for n, run in enumerate(runs)}


def check_alike(one: Ended, two: list[Ended], folder: Path, atol: float = 2e-5) -> None:
    """What they logged, and their weights."""
    for status, said in (one, *two):
        assert status == 0, said[-4000:]
    for key in ("loss", "nll_loss", "gnorm"):
        expected = logged(one[1], key)
        assert len(expected) == UPDATES
        # A log has three digits. Rank 0 speaks for both.
        assert logged(two[0][1], key) == pytest.approx(expected, abs=2e-3)
    assert logged(two[1][1], "loss") == []
    same_weights(folder / "one", folder / "two", atol)


@pytest.fixture(scope="module")
def trained(
    toy_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[tuple[str, str], tuple[Ended, list[Ended]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return folder, run_by_one_and_two(RUNS, toy_data, folder)


@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_two_ranks_train_what_one_does(
    name: str, backend: str, trained: tuple[Path, dict[tuple[str, str], tuple[Ended, list[Ended]]]]
) -> None:
    folder, ended = trained
    check_alike(*ended[name, backend], folder / name / backend)


def test_a_checkpoint_of_two_ranks_is_one_ranks_and_the_reverse(toy_data: Path, tmp_path: Path) -> None:
    flags = [*COMMON, *HEADS["cascade"]]
    # At the end of an epoch: in the middle of one fairseq's iterator remembers how many batches a rank has
    # had, and with another number of ranks these are other batches.
    cut = 4

    def one(name: str, count: int) -> list[list[str]]:
        return [train_line(toy_data, tmp_path / name, *flags, *updates(count), "--update-freq", "2")]

    def two(name: str, count: int) -> list[list[str]]:
        return [train_line(toy_data, tmp_path / name, *flags, *updates(count))] * 2

    trainings = [one("whole", UPDATES), two("a", cut), one("a", UPDATES), one("b", cut), two("b", UPDATES)]
    ended = run_trainings(trainings, tmp_path / "logs")
    for status, said in (rank for training in ended for rank in training):
        assert status == 0, said[-4000:]
    expected = logged(ended[0][0][1], "loss")
    for resumed, folder in ((ended[2], "a"), (ended[4], "b")):
        assert logged(resumed[0][1], "loss") == pytest.approx(expected[cut:], abs=2e-3)
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
