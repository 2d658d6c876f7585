"""``--mhe-shard``: ranks that share a table train what one rank with the whole of it trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from tests.commands import CRITERION, logged, train, train_line
from tests.ranks import run_lines, run_ranks

pytestmark = pytest.mark.slow

#: Without dropout, whose masks are drawn by each rank for itself.
COMMON = [
    *CRITERION, "--dropout", "0", "--update-epoch-batch-itr", "True", "--validate-interval", "100",
]  # fmt: skip
#: Two updates make an epoch, after which there is a checkpoint.
CUT, UPDATES = 4, 6
HEADS = {
    # Five groups: the two ranks have parts of different sizes.
    "cascade": [
        "--mhe-head", "cascade", "--mhe-lengths", "5,5,4", "--mhe-bottleneck", "8", "--share-all-embeddings",
    ],
    "sampling": ["--mhe-head", "sampling", "--mhe-groups", "3"],
    "sampling, exact in the end": [
        "--mhe-head", "sampling", "--mhe-groups", "3", "--mhe-exact-last", "0.5", "--mhe-chunk", "32",
    ],
}  # fmt: skip


def updates(count: int) -> list[str]:
    return ["--max-update", str(count)]


def same_state(one: Path, other: Path) -> None:
    """Weights and the optimiser's moments."""
    mine, theirs = (torch.load(each / "checkpoint_last.pt", weights_only=True) for each in (one, other))
    assert mine["model"].keys() == theirs["model"].keys()
    for name, value in mine["model"].items():
        # A bias of keys has no gradient but for rounding, and Adam makes steps of it like of any.
        if name.endswith("k_proj.bias"):
            continue
        torch.testing.assert_close(theirs["model"][name], value, rtol=1e-3, atol=2e-5, msg=name)
    moments = [each["last_optimizer_state"]["state"] for each in (mine, theirs)]
    assert moments[0].keys() == moments[1].keys()
    for number, kept in moments[0].items():
        for key, value in kept.items():
            other_value = moments[1][number][key]
            torch.testing.assert_close(other_value, value, rtol=1e-3, atol=1e-5, msg=f"{number} {key}")


@pytest.fixture(scope="module", params=HEADS)
def trained(
    request: pytest.FixtureRequest, toy_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, str, str]:
    """Name of a head, and of its trainings by one rank and by two: their folder, and what they said."""
    folder = tmp_path_factory.mktemp("trained")
    flags = [*COMMON, *HEADS[request.param], *updates(UPDATES)]
    alone = train(toy_data, folder / "one", *flags, "--update-freq", "2")
    said = run_ranks(train_line(toy_data, folder / "two", *flags, "--mhe-shard"), folder / "logs")
    return request.param, folder, alone.stdout + alone.stderr, said[0]


def test_ranks_train_what_one_does(trained: tuple[str, Path, str, str]) -> None:
    """Losses, the norm of all gradients, by which they are clipped, and the validation's exact loss."""
    _, folder, alone, said = trained
    assert "split over 2 ranks" in said and "split over" not in alone
    for key in ("loss", "nll_loss", "gnorm"):
        expected = logged(alone, key)
        assert len(expected) == UPDATES
        # A log has three digits. Rank 0 speaks for both.
        assert logged(said, key) == pytest.approx(expected, abs=2e-3)
    assert max(logged(alone, "gnorm")) > 1, "nothing was clipped"
    expected = logged(alone, "valid_nll_loss", kind="valid")
    assert expected and logged(said, "valid_nll_loss", kind="valid") == pytest.approx(expected, abs=2e-3)
    same_state(folder / "one", folder / "two")


def test_a_checkpoint_is_whole_whatever_wrote_it(
    trained: tuple[str, Path, str, str], toy_data: Path, tmp_path: Path
) -> None:
    """One rank goes on where two were, and the reverse."""
    name, folder, alone, _ = trained
    flags = [*COMMON, *HEADS[name], *updates(UPDATES)]
    for each, other in (("one", "two"), ("two", "one")):
        (tmp_path / each).mkdir()
        shutil.copy(folder / other / "checkpoint2.pt", tmp_path / each / "checkpoint_last.pt")
    one = train(toy_data, tmp_path / "one", *flags, "--update-freq", "2")
    said = run_ranks(train_line(toy_data, tmp_path / "two", *flags, "--mhe-shard"), tmp_path / "logs")
    expected = logged(alone, "loss")[CUT:]
    assert logged(one.stdout + one.stderr, "loss") == pytest.approx(expected, abs=2e-3)
    assert logged(said[0], "loss") == pytest.approx(expected, abs=2e-3)
    for each in ("one", "two"):
        same_state(folder / "one", tmp_path / each)


def test_a_search_in_validation_ends_with_a_sentence(toy_data: Path, tmp_path: Path) -> None:
    flags = [*CRITERION, "--mhe-head", "cascade", "--mhe-shard", *updates(1)]
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 5}']
    line = train_line(toy_data, tmp_path / "out", *flags, *bleu)
    for status, text in run_lines([line, line], tmp_path / "logs"):
        assert status == 1
        assert "mhe_fairseq: error: a head that --mhe-shard splits over ranks trains with our" in text
    assert not list((tmp_path / "out").glob("*.pt"))
