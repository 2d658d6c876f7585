"""Means of checkpoints, by our script and as fairseq's makes them: of ours, and of exported ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli.main import main as mhe
from scripts.recipes.average_checkpoints import main as average
from tests.commands import CRITERION, PAIR, PLUGIN, hypotheses, train_line
from tests.masked_lm import CPU, Ended, pretrain, run_lines

pytestmark = pytest.mark.slow

#: All of the first epoch: at its end fairseq saves under another name.
UPDATES = (4, 8, 12)
SAVING = ["--max-update", str(UPDATES[-1]), "--no-epoch-checkpoints", "--disable-validation"]
SAVING += ["--save-interval-updates", "4", "--max-tokens", "100"]
#: Name -> flags. A cascade's state dict says that its rows are part of the input embeddings.
MODELS = {
    "cascade": ["--share-all-embeddings"],
    "product": ["--mhe-head", "product"],
    "sampling": ["--mhe-head", "sampling", "--share-all-embeddings", "--mhe-tie", "exact"],
}


@pytest.fixture(scope="module")
def trained(toy_data: Path, lm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of trainings; of "exported" what the sampling head's checkpoints are in stock fairseq."""
    folder = tmp_path_factory.mktemp("averages")
    lines = {
        name: ["train", *train_line(toy_data, folder / name, *CRITERION, *flags, *SAVING)[1:]]
        for name, flags in MODELS.items()
    }
    masked = [flag for flag in SAVING if flag != "--no-epoch-checkpoints"]
    lines["masked"] = pretrain(lm_data, folder / "masked", *masked)
    for ended in run_lines(folder / "logs", lines).values():
        assert ended.status == 0, ended.said[-3000:]
    (folder / "exported").mkdir()
    for path in saved(folder / "sampling"):
        assert mhe(["export", str(path), "-o", str(folder / "exported" / path.name)]) == 0
    return folder


def saved(folder: Path) -> list[Path]:
    """The checkpoints of ``UPDATES``."""
    return [next(folder.glob(f"checkpoint_*_{update}.pt")) for update in UPDATES]


def by_our_script(folder: Path, output: Path) -> None:
    assert average([str(folder), "--last", str(len(UPDATES)), "-o", str(output)]) == 0


def as_fairseqs_does(folder: Path, output: Path) -> None:
    """The sum of all, in place; weights are divided, what is whole is divided without a remainder."""
    state: dict[str, Any] | None = None
    total: dict[str, Tensor] = {}
    for path in saved(folder):
        loaded = torch.load(path, weights_only=True)
        state = state or loaded
        for name, value in loaded["model"].items():
            if name in total:
                total[name] += value
            else:
                total[name] = value.clone()
    for name in total:
        if total[name].is_floating_point():
            total[name].div_(len(UPDATES))
        else:
            total[name] //= len(UPDATES)
    torch.save({**(state or {}), "model": total}, output)


WAYS: dict[str, Callable[[Path, Path], None]] = {"ours": by_our_script, "fairseq's": as_fairseqs_does}


def weights(paths: Iterable[Path]) -> list[dict[str, Tensor]]:
    return [torch.load(path, weights_only=True)["model"] for path in paths]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*MODELS, "masked", "exported"])
def test_weights_are_averaged_and_codes_kept(name: str, way: str, trained: Path, tmp_path: Path) -> None:
    WAYS[way](trained / name, tmp_path / "mean.pt")
    (found,), each = weights([tmp_path / "mean.pt"]), weights(saved(trained / name))
    assert any(not torch.equal(value, each[2][key]) for key, value in each[0].items())
    assert any("codebook_slots" in key for key in found) == (name != "exported")
    for key, value in found.items():
        if value.is_floating_point():
            mean = torch.stack([state[key].double() for state in each]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, each[0][key]), key


def translating(data: Path, path: Path, *flags: str) -> list[str]:
    long = ["--max-len-a", "1.5", "--max-len-b", "5", "--beam", "3", "--required-batch-size-multiple", "1"]
    return ["generate", str(data), *PAIR, "--path", str(path), *CPU, *long, *flags]


def test_they_translate(trained: Path, toy_data: Path, lm_data: Path, tmp_path: Path) -> None:
    """Both means alike; that of exported ones, without a map, is the export of the mean; a masked model goes
    on training."""
    lines, of = {}, {}
    for name in (*MODELS, "exported"):
        for way, make in WAYS.items():
            of[name, way] = tmp_path / f"{name} {way}.pt"
            make(trained / name, of[name, way])
            lines[f"{name} {way}"] = translating(toy_data, of[name, way], *PLUGIN)
    shutil.copy(saved(trained / "cascade")[-1], tmp_path / "last.pt")
    lines["last"] = translating(toy_data, tmp_path / "last.pt", *PLUGIN)
    for way, make in WAYS.items():
        make(trained / "masked", tmp_path / f"masked {way}.pt")
        validate = ["validate", str(lm_data), *PLUGIN, "--task", "masked_lm", "--valid-subset", "valid"]
        lines[f"masked {way}"] = [
            *validate, "--path", str(tmp_path / f"masked {way}.pt"), *CPU, "--max-tokens", "500",
        ]  # fmt: skip
    ended = run_lines(tmp_path / "logs", lines)
    found: dict[str, Any] = {name: translations(each) for name, each in ended.items() if "masked" not in name}
    for name in (*MODELS, "exported"):
        check_alike(found[f"{name} ours"], found[f"{name} fairseq's"])
    check_alike(found["exported ours"], found["sampling ours"])
    assert found["cascade ours"] != found["last"]
    for way in WAYS:
        assert ended[f"masked {way}"].status == 0, ended[f"masked {way}"].said[-3000:]


def translations(ended: Ended) -> dict[int, tuple[float, str]]:
    assert ended.status == 0, ended.said[-3000:]
    found = hypotheses(ended.said)
    assert len(found) == 30
    return found


def check_alike(mine: dict[int, tuple[float, str]], theirs: dict[int, tuple[float, str]]) -> None:
    assert {number: text for number, (_, text) in mine.items()} == {
        number: text for number, (_, text) in theirs.items()
    }
    for number, (score, _) in mine.items():
        assert score == pytest.approx(theirs[number][0], abs=2e-4)
