"""``--mhe-exact-last`` and ``--mhe-exact-after``: trainings that end with the exact loss."""

from __future__ import annotations

import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import SamplingHead
from mhe_fairseq.heads.sampling.exact_end import ExactEnd
from mhe_fairseq.models import options
from mhe_fairseq.models.exact_end import check_end
from mhe_fairseq.models.options import HeadOptions
from tests.commands import CRITERION, PLUGIN, logged, train_line
from tests.language_model import CPU, LM, SMALL
from tests.masked_lm import Ended, pretrain, run_lines

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

SYMBOLS = [f"w{n}" for n in range(100)]
SAMPLING = ["--mhe-head", "sampling", "--mhe-groups", "1", "--mhe-chunk", "16"]
#: A checkpoint after every update, named by its epoch and its number.
EVERY = ["--save-interval-updates", "1"]
#: A training that goes on in a later epoch makes its batches anew; one without a break keeps the first ones.
ANEW = ["--disable-validation", "--update-epoch-batch-itr", "True"]
#: Trainings of eight updates, four in an epoch, with the last three exact; and of three epochs of two
#: updates, with the last two exact: the end is in the middle of neither. Checkpoints to go on from are from
#: before, at and after the change.
TRAININGS = {
    "updates": ["--max-update", "8", "--mhe-exact-last", "0.3"],
    "epochs": ["--max-epoch", "3", "--update-freq", "2", "--mhe-exact-last", "0.5"],
}
BEGIN, UPDATES = {"updates": 6, "epochs": 4}, {"updates": 8, "epochs": 6}
CUTS = {
    "updates": {3: "checkpoint_1_3.pt", 5: "checkpoint_2_5.pt", 6: "checkpoint_2_6.pt"},
    "epochs": {2: "checkpoint1.pt", 3: "checkpoint_2_3.pt", 4: "checkpoint2.pt"},
}


def end_of(**flags: object) -> ExactEnd | None:
    head = HeadOptions.resolve(Namespace(mhe_head="sampling", **flags), SYMBOLS).build(4, None)
    assert isinstance(head, SamplingHead)
    return head.exact_end


def begins(said: str) -> list[int]:
    """The updates from which on the log says that the loss is exact."""
    return [int(number) for number in re.findall(r"mhe: exact softmax from update (\d+) on: ", said)]


# ---- flags


def test_flags_give_the_end_to_the_head() -> None:
    assert end_of(mhe_exact_last="0.25") == ExactEnd(0.25)
    assert end_of(mhe_exact_last=1) == ExactEnd(1.0)
    assert end_of(mhe_exact_after="100") == ExactEnd(after=100)
    args = Namespace(mhe_head="sampling", mhe_chunk="7")
    head = HeadOptions.resolve(args, SYMBOLS).build(4, None)
    assert isinstance(head, SamplingHead) and head.chunk == 7


@pytest.mark.parametrize("usual", [0.0, 0.2])
def test_without_flags_it_is_the_usual_one(usual: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written into a checkpoint if it is any; other variants, and what is restored, have none."""
    monkeypatch.setattr(options, "DEFAULT_EXACT_LAST", usual)
    assert end_of() == ExactEnd(usual, is_asked=False)
    for other in ("predicted", "own"):
        assert end_of(mhe_sampling=other) == ExactEnd(0.0, is_asked=False)
    args = Namespace(mhe_head="sampling")
    HeadOptions.resolve(args, SYMBOLS)
    assert args.mhe_exact_last == (usual or None)
    older = Namespace(mhe_head="sampling", mhe_lengths="10,10", mhe_fingerprint="ff")
    HeadOptions.resolve(older, SYMBOLS)
    assert older.mhe_exact_last is None
    # Nobody asked for it, so a training without a known end goes on as it is.
    check_end(ExactEnd(usual, is_asked=False), Namespace(max_update=0, max_epoch=0))


def test_a_share_of_a_training_without_an_end_is_refused() -> None:
    for end in (ExactEnd(0.0), ExactEnd(after=3)):
        check_end(end, Namespace(max_update=0, max_epoch=0))
    for ends in ({"max_update": 5, "max_epoch": 0}, {"max_update": 0, "max_epoch": 5}):
        check_end(ExactEnd(0.5), Namespace(**ends))
    with pytest.raises(MHEError, match=r"--mhe-exact-last 0\.5 is a share .* neither --max-update nor"):
        check_end(ExactEnd(0.5), Namespace(max_update=0, max_epoch=0))


# ---- trainings


def line(data: Path, save_dir: Path, *flags: str) -> list[str]:
    """For ``run_lines``."""
    return ["train", *train_line(data, save_dir, *CRITERION, *SAMPLING, *flags)[1:]]


def language_model(data: Path, save_dir: Path, *flags: str) -> list[str]:
    return [
        "train", str(data), *PLUGIN, *LM, "--arch", "mhe_transformer_lm", *SMALL, *CRITERION, *SAMPLING,
        "--optimizer", "adam", "--lr", "0.005", "--max-tokens", "500", *CPU, "--seed", "1",
        "--log-format", "json", "--log-interval", "1", "--save-dir", str(save_dir), *flags,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


@pytest.fixture(scope="module")
def trained(toy_data: Path, lm_data: Path, folder: Path) -> dict[str, Ended]:
    """How trainings ended; checkpoints of some lie in ``folder``, by name."""
    short = ["--max-update", "3", "--no-save", "--mhe-exact-after", "1"]
    lines = {name: line(toy_data, folder / name, *flags, *EVERY, *ANEW) for name, flags in TRAININGS.items()}
    lines["sampled"] = line(toy_data, folder / "sampled", *short[:3], "--mhe-exact-last", "0")
    lines["softmax"] = line(toy_data, folder / "softmax", *short[:3], "--mhe-exact-after", "0")
    lines["fp16"] = line(toy_data, folder / "fp16", *short, "--fp16", "--fp16-init-scale", "16")
    lines["bf16"] = line(toy_data, folder / "bf16", *short, "--bf16")
    lines["a language model"] = language_model(lm_data, folder / "lm", *short)
    lines["a masked language model"] = pretrain(lm_data, folder / "masked", *SAMPLING, *short)
    lines["a share of nothing"] = line(toy_data, folder / "nothing", "--mhe-exact-last", "0.5")
    return run_lines(folder / "logs", lines)


@pytest.fixture(scope="module")
def resumed(toy_data: Path, folder: Path, trained: dict[str, Ended]) -> dict[str, Ended]:
    """Trainings that went on from a checkpoint: by name, and the checkpoint's update."""
    lines = {}
    for name, cuts in CUTS.items():
        for done, checkpoint in cuts.items():
            own = folder / f"{name} {done}"
            own.mkdir()
            shutil.copy(folder / name / checkpoint, own / "checkpoint_last.pt")
            lines[own.name] = line(toy_data, own, *TRAININGS[name], *ANEW)
    return run_lines(folder / "logs of resumed ones", lines)


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]
    return found


@pytest.mark.parametrize("name", TRAININGS)
def test_the_last_updates_are_exact(name: str, trained: dict[str, Ended], folder: Path) -> None:
    assert trained[name].status == 0, trained[name].said[-3000:]
    said = trained[name].said
    assert begins(said) == [BEGIN[name]]
    ends = {"updates": "the last 30% of 8 updates", "epochs": "the last 50% of 3 epochs"}
    assert f"on: {ends[name]}; 16 rows of logits at a time" in said
    assert logged(said, "num_updates") == list(range(1, UPDATES[name] + 1))
    if name == "updates":
        # As without it before, and otherwise after.
        assert logged(trained["sampled"].said, "loss") == logged(said, "loss")[:3]
        assert begins(trained["sampled"].said) == []


@pytest.mark.parametrize("name", [f"{name} {cut}" for name, cuts in CUTS.items() for cut in cuts])
def test_a_training_that_goes_on_is_one_without_a_break(
    name: str, trained: dict[str, Ended], resumed: dict[str, Ended], folder: Path
) -> None:
    whole, done = name.split()[0], int(name.split()[1])
    assert resumed[name].status == 0, resumed[name].said[-3000:]
    assert begins(resumed[name].said) == [max(BEGIN[whole], done + 1)]
    expected = logged(trained[whole].said, "loss")[done:]
    assert len(expected) == UPDATES[whole] - done
    assert logged(resumed[name].said, "loss") == pytest.approx(expected, abs=2e-3)
    mine, theirs = weights(folder / name), weights(folder / whole)
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_all_updates_exact_are_a_softmaxs(trained: dict[str, Ended], toy_data: Path, folder: Path) -> None:
    """A softmax head draws the same initial weights."""
    flags = [*CRITERION, "--mhe-head", "softmax", "--max-update", "3", "--no-save"]
    lines = {"softmax": ["train", *train_line(toy_data, folder / "other", *flags)[1:]]}
    other = run_lines(folder / "logs of a softmax", lines)["softmax"]
    for key in ("loss", "nll_loss", "gnorm"):
        expected = logged(other.said, key)
        assert len(expected) == 3
        assert logged(trained["softmax"].said, key) == pytest.approx(expected, abs=2e-3)
    assert begins(trained["softmax"].said) == [1]


@pytest.mark.parametrize("name", ["fp16", "bf16", "a language model", "a masked language model"])
def test_models_and_precisions(name: str, trained: dict[str, Ended]) -> None:
    said = trained[name].said
    assert trained[name].status == 0, said[-3000:]
    assert begins(said) == [2]
    losses = logged(said, "loss")
    assert len(losses) == 3 and all(0 < loss < 20 for loss in losses)


def test_a_share_of_nothing_ends_with_a_sentence(trained: dict[str, Ended], folder: Path) -> None:
    ended = trained["a share of nothing"]
    assert ended.status == 1
    assert ended.last == (
        "mhe_fairseq: error: --mhe-exact-last 0.5 is a share of the training's updates, and neither "
        "--max-update nor --max-epoch says how many there are; give one of them, or --mhe-exact-after N"
    )
    assert not list((folder / "nothing").glob("*.pt"))
