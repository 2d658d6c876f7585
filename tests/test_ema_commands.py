"""``--store-ema``: trainings that average their weights, go on, and translate with the averages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from torch import Tensor

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from tests.commands import CRITERION, PLUGIN, generate, hypotheses, train, train_line
from tests.language_model import CPU, LM
from tests.language_model import SMALL as SMALL_LM
from tests.masked_lm import pretrain
from tests.ranks import Ended, run_trainings

pytestmark = pytest.mark.slow

#: A checkpoint of each update.
AVERAGING = [
    "--no-epoch-checkpoints", "--disable-validation", "--update-epoch-batch-itr", "True", "--max-tokens",
    "40", "--save-interval-updates", "1", "--store-ema", "--ema-decay", "0.5",
]  # fmt: skip
COMMON = [*CRITERION, *AVERAGING]
ADAM = ["--optimizer", "adam", "--lr", "0.005", "--seed", "1"]
CUT, UPDATES = 3, 6
TRAININGS = {
    "cascade": [
        "--mhe-head", "cascade", "--share-all-embeddings", "--encoder-normalize-before",
        "--decoder-normalize-before",
    ],
    "product": ["--mhe-head", "product", "--share-all-embeddings", "--ema-update-freq", "2"],
    "sampling": ["--mhe-head", "sampling", "--share-all-embeddings", "--fp16", "--ema-fp32"],
    "softmax": [
        "--mhe-head", "softmax", "--share-decoder-input-output-embed", "--ema-fp32", "--ema-start-update",
        "4",
    ],
}  # fmt: skip
#: Those that are interrupted and go on.
CUT_TOO = ("cascade", "product", "sampling")


def updates(count: int) -> list[str]:
    return ["--max-update", str(count)]


def state(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def by_hand(folder: Path, flags: list[str]) -> dict[str, Tensor]:
    """The average that ``flags`` ask for, of the checkpoints of all updates."""

    def given(flag: str) -> int:
        return int(flags[flags.index(flag) + 1]) if flag in flags else 0

    mean: dict[str, Tensor] = {}
    for update in range(1, UPDATES + 1):
        model = state(folder / f"checkpoint_1_{update}.pt")["model"]
        if not mean:
            mean = model
        elif update % (given("--ema-update-freq") or 1) == 0:
            share = 0.5 if update >= given("--ema-start-update") else 1.0
            for name, value in model.items():
                if value.is_floating_point():
                    mean[name] = mean[name] * (1 - share) + value * share
    return mean


def check_alike(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


def check_equal(one: Path, other: Path) -> None:
    mine, theirs = state(one), state(other)
    for found, expected in (
        (mine["model"], theirs["model"]),
        *((mine["extra_state"].get(key, {}), theirs["extra_state"].get(key, {})) for key in AVERAGES),
    ):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


AVERAGES = ("ema", "ema_fp32_params")
LAST = f"checkpoint_1_{UPDATES}.pt"


@pytest.fixture(scope="module")
def trained(
    toy_data: Path, lm_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[Ended]]]:
    """A folder with trainings, and how their ranks ended. Those in ``NAME cut`` were interrupted."""
    folder = tmp_path_factory.mktemp("ema")
    trainings: dict[str, list[list[str]]] = {}
    for name, flags in TRAININGS.items():
        trainings[name] = [train_line(toy_data, folder / name, *COMMON, *flags, *updates(UPDATES))]
        for count in (CUT, UPDATES) if name in CUT_TOO else ():
            line = train_line(toy_data, folder / f"{name} cut", *COMMON, *flags, *updates(count))
            trainings[f"{name} {count}"] = [line]
    for count in (CUT, UPDATES):
        line = train_line(toy_data, folder / "ranks cut", *COMMON, *TRAININGS["cascade"], *updates(count))
        trainings[f"ranks {count}"] = [line, line]
    line = train_line(toy_data, folder / "ranks", *COMMON, *TRAININGS["cascade"], *updates(UPDATES))
    trainings["ranks"] = [line, line]
    lm = [str(lm_data), *PLUGIN, *LM, "--arch", "mhe_transformer_lm", *SMALL_LM, *CRITERION, *CPU, *ADAM]
    trainings["lm"] = [["", *lm, "--save-dir", str(folder / "lm"), *AVERAGING, *updates(UPDATES)]]
    trainings["masked"] = [pretrain(lm_data, folder / "masked", *AVERAGING, *updates(UPDATES))]
    ended = run_trainings(list(trainings.values()), folder / "logs")
    for status, said in (rank for ranks in ended for rank in ranks):
        assert status == 0, said[-4000:]
    return folder, dict(zip(trainings, ended, strict=True))


@pytest.mark.parametrize("name", [*TRAININGS, "ranks", "lm", "masked"])
def test_the_average_is_that_of_the_weights(name: str, trained: tuple[Path, dict[str, list[Ended]]]) -> None:
    folder = trained[0] / name
    flags = TRAININGS.get(name, [])
    expected, extra = by_hand(folder, flags), state(folder / LAST)["extra_state"]
    check_alike(extra["ema"], expected, 1e-6 if "--fp16" not in flags else 2e-3)
    assert ("ema_fp32_params" in extra) == ("--ema-fp32" in flags)
    if "--ema-fp32" in flags:
        check_alike(extra["ema_fp32_params"], expected, 1e-6)
    last = state(folder / LAST)["model"]
    assert any(not torch.equal(last[key], value) for key, value in extra["ema"].items())


@pytest.mark.parametrize("name", [*CUT_TOO, "ranks"])
def test_a_training_goes_on_as_it_would_have(name: str, trained: tuple[Path, dict[str, list[Ended]]]) -> None:
    folder, ended = trained
    assert "the average goes on from the checkpoint's" in ended[f"{name} {UPDATES}"][0][1]
    if "--fp16" not in TRAININGS.get(name, []):
        check_equal(folder / name / LAST, folder / f"{name} cut" / LAST)
        return
    # fairseq's checkpoints do not have the fp32 weights that it trains, so these go on with other ones.
    expected = by_hand(folder / f"{name} cut", TRAININGS[name])
    check_alike(state(folder / f"{name} cut" / LAST)["extra_state"]["ema_fp32_params"], expected, 1e-6)


def with_weights(path: Path, weights: dict[str, Tensor], output: Path) -> Path:
    torch.save({**state(path), "model": weights}, output)
    return output


@pytest.mark.parametrize("name", ["cascade", "product", "sampling"])
def test_averages_translate(
    name: str, trained: tuple[Path, dict[str, list[Ended]]], toy_data: Path, tmp_path: Path
) -> None:
    """By fairseq's own way of making a checkpoint of them."""
    last = trained[0] / name / LAST
    checkpoint_utils.save_ema_as_checkpoint(str(last), str(tmp_path / "ema.pt"))
    extra = state(last)["extra_state"]
    expected = with_weights(last, extra["ema"], tmp_path / "expected.pt")
    wide = ["--task", "translation", "--beam", "3"]
    reference = hypotheses(generate(toy_data, expected, *wide).stdout)
    assert len(reference) == 30
    for flags in (wide, ["--task", "mhe_translation", "--beam", "3"]):
        found = hypotheses(generate(toy_data, tmp_path / "ema.pt", *flags).stdout)
        assert {key: text for key, (_, text) in found.items()} == {
            key: text for key, (_, text) in reference.items()
        }
        for key, (score, _) in found.items():
            assert score == pytest.approx(reference[key][0], abs=2e-4)
    assert hypotheses(generate(toy_data, last, *wide).stdout) != reference


def test_an_average_begins_in_the_middle(
    trained: tuple[Path, dict[str, list[Ended]]], toy_data: Path, tmp_path: Path
) -> None:
    """Of a training without one; a seed is where it begins instead."""
    flags = [*COMMON, *TRAININGS["softmax"]]
    without = [flag for flag in flags if flag not in ("--store-ema", "--ema-fp32")]
    train(toy_data, tmp_path / "a", *without, *updates(CUT))
    assert "ema" not in state(tmp_path / "a" / "checkpoint_last.pt")["extra_state"]
    done = train(toy_data, tmp_path / "a", *flags, *updates(CUT + 1))
    assert "the checkpoint has no average; it begins with the weights there are" in done.stdout + done.stderr
    models = [state(tmp_path / "a" / f"checkpoint_1_{n}.pt")["model"] for n in (CUT, CUT + 1)]
    mean = {
        name: (value + models[1][name]) / 2 if value.is_floating_point() else value
        for name, value in models[0].items()
    }
    check_alike(state(tmp_path / "a" / f"checkpoint_1_{CUT + 1}.pt")["extra_state"]["ema"], mean, 1e-6)

    seed = trained[0] / "softmax" / LAST
    flags += ["--ema-start-update", "0", "--ema-seed-model", str(seed)]
    train(toy_data, tmp_path / "b", *flags, *updates(1))
    extra = state(tmp_path / "b" / "checkpoint_1_1.pt")
    seeded = {
        name: (value + extra["model"][name]) / 2 if value.is_floating_point() else value
        for name, value in state(seed)["extra_state"]["ema"].items()
    }
    check_alike(extra["extra_state"]["ema"], seeded, 1e-6)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--ema-decay", "1.5"], "--ema-decay must be a number from 0 to 1, got 1.5"),
        (["--ema-seed-model", "gone.pt"], "there is no checkpoint gone.pt to read averaged weights from"),
    ],
)
def test_bad_settings(flags: list[str], sentence: str, toy_data: Path, tmp_path: Path) -> None:
    done = train(toy_data, tmp_path / "out", *COMMON, *flags, *updates(1), check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1] == f"mhe_fairseq: error: {sentence}"
    assert not list(tmp_path.glob("out/*.pt"))


def test_a_seed_of_another_head(
    trained: tuple[Path, dict[str, list[Ended]]], toy_data: Path, tmp_path: Path
) -> None:
    seed = str(trained[0] / "softmax" / LAST)
    flags = [*COMMON, "--mhe-head", "product", "--ema-seed-model", seed]
    done = train(toy_data, tmp_path / "out", *flags, *updates(1), check=False)
    said = done.stderr.rstrip().splitlines()[-1]
    assert done.returncode == 1 and said.startswith("mhe_fairseq: error: ") and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*.pt"))
