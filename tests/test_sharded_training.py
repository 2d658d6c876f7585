"""``--mhe-shard``: ranks that share a table train what one rank with the whole of it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.coding import Codebook
from tests.commands import CRITERION, generate, hypotheses, logged, train, train_line
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

#: Without dropout, whose masks are drawn by each rank for itself.
COMMON = [
    *CRITERION, "--dropout", "0", "--update-epoch-batch-itr", "True", "--no-epoch-checkpoints",
    "--validate-interval", "100",
]  # fmt: skip
CUT, UPDATES = 4, 6
HEADS = {
    "cascade of three digits": ["--mhe-head", "cascade", "--mhe-lengths", "5,5,4"],
    "bottleneck": ["--mhe-head", "cascade", "--mhe-bottleneck", "8", "--share-all-embeddings"],
    "sampling": ["--mhe-head", "sampling", "--mhe-groups", "3"],
}


def updates(count: int) -> list[str]:
    return ["--max-update", str(count)]


def same_state(one: Path, other: Path) -> None:
    """Weights and the optimiser's moments."""
    mine, theirs = (torch.load(each / "checkpoint_last.pt", weights_only=True) for each in (one, other))
    assert mine["model"].keys() == theirs["model"].keys()
    for name, value in mine["model"].items():
        torch.testing.assert_close(theirs["model"][name], value, rtol=1e-3, atol=2e-5, msg=name)
    moments = [each["last_optimizer_state"]["state"] for each in (mine, theirs)]
    assert moments[0].keys() == moments[1].keys()
    for number, kept in moments[0].items():
        for key, value in kept.items():
            other_value = moments[1][number][key]
            torch.testing.assert_close(other_value, value, rtol=1e-3, atol=1e-5, msg=f"{number} {key}")


@pytest.mark.parametrize("name", HEADS)
def test_ranks_train_what_one_does(name: str, toy_data: Path, tmp_path: Path) -> None:
    """Losses, the norm of all gradients, by which they are clipped, and the validation's exact loss."""
    flags = [*COMMON, *HEADS[name], *updates(UPDATES)]
    alone = train(toy_data, tmp_path / "one", *flags, "--update-freq", "2")
    said = run_ranks(train_line(toy_data, tmp_path / "two", *flags, "--mhe-shard"), tmp_path / "logs")
    assert "split over 2 ranks" in said[0]
    text = alone.stdout + alone.stderr
    for key in ("loss", "nll_loss", "gnorm"):
        expected = logged(text, key)
        assert len(expected) == UPDATES
        # A log has three digits. Rank 0 speaks for both.
        assert logged(said[0], key) == pytest.approx(expected, abs=2e-3)
    assert min(logged(text, "gnorm")) > 1, "nothing was clipped"
    expected = logged(text, "valid_nll_loss", kind="valid")
    assert expected and logged(said[0], "valid_nll_loss", kind="valid") == pytest.approx(expected, abs=2e-3)
    same_state(tmp_path / "one", tmp_path / "two")
    if name == "sampling":
        found = [
            hypotheses(generate(toy_data, tmp_path / each / "checkpoint_last.pt").stdout)
            for each in ("one", "two")
        ]
        assert found[0].keys() == found[1].keys() and len(found[0]) == 30
        # Weights differ by rounding.
        assert sum(found[0][key][1] == found[1][key][1] for key in found[0]) >= 29


def test_ranks_with_different_codebooks_end_with_a_sentence(toy_data: Path, tmp_path: Path) -> None:
    books = [Codebook((8, 11)), Codebook((8, 11), torch.arange(88).flip(0))]
    for rank, book in enumerate(books):
        book.save(tmp_path / f"codes{rank}")
    line = train_line(toy_data, tmp_path / "out", *COMMON, "--mhe-head", "cascade", "--mhe-shard")
    own = [["--mhe-codebook", str(tmp_path / f"codes{rank}")] for rank in range(2)]
    said = run_ranks(line, tmp_path / "logs", check=False, own=own)
    prints = [f"rank {rank} has {book.fingerprint}" for rank, book in enumerate(books)]
    for text in said:
        assert "mhe_fairseq: error: the ranks that share a table have different codebooks" in text
        assert f"by their fingerprints: {', '.join(prints)}; give all of them the same one" in text
        assert "Traceback" not in text
    assert not list((tmp_path / "out").glob("*.pt"))


def test_a_search_in_validation_ends_with_a_sentence(toy_data: Path, tmp_path: Path) -> None:
    flags = [*CRITERION, "--mhe-head", "cascade", "--mhe-shard", *updates(1)]
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 5}']
    said = run_ranks(train_line(toy_data, tmp_path / "out", *flags, *bleu), tmp_path / "logs", check=False)
    for text in said:
        assert "mhe_fairseq: error: a head that --mhe-shard splits over ranks trains with our" in text
    assert not list((tmp_path / "out").glob("*.pt"))


def test_a_checkpoint_is_whole_whatever_wrote_it(toy_data: Path, tmp_path: Path) -> None:
    """Two ranks, then one with the whole table; and the reverse."""
    flags = [*COMMON, "--mhe-head", "cascade"]
    whole = train(toy_data, tmp_path / "whole", *flags, *updates(UPDATES), "--update-freq", "2")
    expected = logged(whole.stdout + whole.stderr, "loss")
    shard = [*flags, "--mhe-shard"]
    run_ranks(train_line(toy_data, tmp_path / "a", *shard, *updates(CUT)), tmp_path / "logs a")
    one = train(toy_data, tmp_path / "a", *flags, *updates(UPDATES), "--update-freq", "2")
    assert logged(one.stdout + one.stderr, "loss") == pytest.approx(expected[CUT:], abs=2e-3)
    train(toy_data, tmp_path / "b", *flags, *updates(CUT), "--update-freq", "2")
    two = run_ranks(train_line(toy_data, tmp_path / "b", *shard, *updates(UPDATES)), tmp_path / "logs b")
    assert logged(two[0], "loss") == pytest.approx(expected[CUT:], abs=2e-3)
    for folder in ("a", "b"):
        same_state(tmp_path / "whole", tmp_path / folder)
