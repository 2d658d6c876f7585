"""fairseq's commands in half precision on the CPU: every kind of model and head trains, goes on and searches,
and is read in fp32 elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhe_fairseq.models import MHETransformerModel
from tests.commands import ALL_SENTENCES, CRITERION, PAIR, PLUGIN, hypotheses, logged, train_line
from tests.language_model import CPU, LM
from tests.language_model import SMALL as SMALL_LM
from tests.masked_lm import Ended, pretrain, run_lines

pytestmark = pytest.mark.slow

SHORT = ["--no-epoch-checkpoints", "--max-update"]
#: More updates than loss scales on the way down.
OVERFLOWING = ["--fp16", "--fp16-init-scale", "4194304", "--fp16-scale-window", "4"]
#: Name -> flags of a translation model's training.
TRAININGS = {
    "fp32": [],
    "bf16": ["--bf16"],
    "memory-efficient bf16": ["--memory-efficient-bf16"],
    "fp16": ["--fp16"],
    "memory-efficient fp16": ["--memory-efficient-fp16"],
    "overflowing": OVERFLOWING,
    "product bf16": ["--bf16", "--mhe-head", "product", "--mhe-mixtures", "2"],
    "sampling bf16": ["--bf16", "--mhe-head", "sampling"],
    "softmax bf16": ["--bf16", "--mhe-head", "softmax"],
    "tied bf16": ["--bf16", "--share-all-embeddings"],
}


def translation(data: Path, save_dir: Path, *flags: str, updates: int = 20) -> list[str]:
    return ["train", *train_line(data, save_dir, *CRITERION, *flags, *SHORT, str(updates))[1:]]


def language_model(data: Path, save_dir: Path, *flags: str) -> list[str]:
    return [
        "train", str(data), *PLUGIN, *LM, "--arch", "mhe_transformer_lm", *SMALL_LM, *CRITERION,
        "--optimizer", "adam", "--lr", "0.005", "--max-tokens", "500", *CPU, "--seed", "1",
        "--log-format", "json", "--log-interval", "1", "--save-dir", str(save_dir), *flags, *SHORT, "20",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(
    toy_data: Path, lm_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Ended]]:
    """A folder with a checkpoint folder for each training, and how each one ended."""
    folder = tmp_path_factory.mktemp("half")
    lines = {name: translation(toy_data, folder / name, *flags) for name, flags in TRAININGS.items()}
    for kind in ("bf16", "fp32"):
        flags = ["--bf16"] if kind == "bf16" else []
        lines[f"lm {kind}"] = language_model(lm_data, folder / f"lm {kind}", *flags)
        lines[f"masked {kind}"] = pretrain(lm_data, folder / f"masked {kind}", *flags, *SHORT[1:], "20")
    return folder, run_lines(folder / "logs", lines)


def checkpoint(trained: tuple[Path, dict[str, Ended]], name: str) -> Path:
    return trained[0] / name / "checkpoint_last.pt"


def losses(ended: Ended, key: str = "loss", kind: str = "train_inner") -> list[float]:
    assert ended.status == 0, ended.said[-3000:]
    return logged(ended.said, key, kind)


@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in ("fp32", "overflowing")])
def test_every_head_trains(name: str, trained: tuple[Path, dict[str, Ended]]) -> None:
    found = losses(trained[1][name])
    assert len(found) == 20 and found[-1] < found[0] - 1
    if name.count(" ") == 0 or name.startswith("memory"):
        # What fp32 does, but for rounding.
        exact = losses(trained[1]["fp32"])
        assert found == pytest.approx(exact, rel=2e-2)
        assert found != exact


@pytest.mark.parametrize("name", ["lm", "masked"])
def test_language_models_train(name: str, trained: tuple[Path, dict[str, Ended]]) -> None:
    found, exact = (losses(trained[1][f"{name} {kind}"]) for kind in ("bf16", "fp32"))
    assert len(found) == 20 and found == pytest.approx(exact, rel=2e-2) and found != exact


def test_a_loss_scale_that_is_too_large_is_lowered(trained: tuple[Path, dict[str, Ended]]) -> None:
    ended = trained[1]["overflowing"]
    found, scales = losses(ended), losses(ended, "loss_scale")
    # The updates that overflowed are none.
    assert ended.said.count("gradient overflow detected, ignoring gradient") >= 3
    assert len(found) == 20 and found[-1] < found[0] - 1
    assert scales[0] < 4194304 and max(scales) > min(scales)


def test_a_checkpoint_is_in_fp32_and_of_no_tpu(trained: tuple[Path, dict[str, Ended]]) -> None:
    state = torch.load(checkpoint(trained, "bf16"), weights_only=True)
    assert {value.dtype for value in state["model"].values()} == {torch.float32, torch.int64}
    assert state["cfg"]["common"]["bf16"] and not state["cfg"]["common"]["tpu"]
    assert "|precision:bf16|" in state["cfg"]["model"].mhe_signature


def test_training_goes_on(trained: tuple[Path, dict[str, Ended]], toy_data: Path, tmp_path: Path) -> None:
    names = ("bf16", "memory-efficient bf16", "overflowing")
    lines = {
        name: translation(
            toy_data, tmp_path / name, *TRAININGS[name], "--restore-file", str(checkpoint(trained, name)),
            updates=24,
        )
        for name in names
    }  # fmt: skip
    for name, ended in run_lines(tmp_path / "logs", lines).items():
        found = losses(ended)
        assert len(found) == 4 and "Loaded checkpoint" in ended.said
        assert max(found) < losses(trained[1][name])[0] - 1


def search_lines(data: Path, path: Path, *flags: str) -> list[str]:
    long = ["--max-len-a", "1.5", "--max-len-b", "5", "--beam", "2"]
    return ["generate", str(data), *PLUGIN, *PAIR, "--path", str(path), *CPU, *ALL_SENTENCES, *long, *flags]


def test_search_and_scoring(trained: tuple[Path, dict[str, Ended]], toy_data: Path, tmp_path: Path) -> None:
    path = checkpoint(trained, "fp32")
    validate = ["validate", str(toy_data), *PLUGIN, "--task", "translation", "--path", str(path), *CPU]
    validate += [*ALL_SENTENCES, "--max-tokens", "500", "--log-format", "json"]
    flags: dict[str, list[str]] = {"fp32": [], "bf16": ["--bf16"], "fp16": ["--fp16"]}
    lines = {f"generate {name}": search_lines(toy_data, path, *each) for name, each in flags.items()}
    lines |= {f"validate {name}": [*validate, *each] for name, each in flags.items()}
    # One that was trained in half precision is searched in what the command says.
    lines["half"] = search_lines(toy_data, checkpoint(trained, "bf16"))
    ended = run_lines(tmp_path, lines)
    assert [each.status for each in ended.values()] == [0] * len(lines)
    exact = hypotheses(ended["generate fp32"].said)
    (loss,) = losses(ended["validate fp32"], "valid_nll_loss", "valid")
    for name in ("bf16", "fp16"):
        found = hypotheses(ended[f"generate {name}"].said)
        assert found != exact and found.keys() == exact.keys()
        alike = [found[key][0] == pytest.approx(exact[key][0], abs=0.1) for key in exact]
        assert sum(alike) >= 27
        (again,) = losses(ended[f"validate {name}"], "valid_nll_loss", "valid")
        assert again == pytest.approx(loss, abs=2e-2)
    assert len(hypotheses(ended["half"].said)) == 30


#: Runs a command as ``-m`` does or as its script does, and prints which types the layers have when called.
WATCHED = """
import importlib, runpy, sys, torch
call = torch.nn.Module.__call__
def watched(self, *args, **kwargs):
    if hasattr(self, "fc1"):
        print("SEEN", *{str(each.dtype) for each in self.parameters()})
    return call(self, *args, **kwargs)
torch.nn.Module.__call__ = watched
name, way, *sys.argv[1:] = sys.argv[1:]
if way == "-m":
    sys.modules.pop(name, None)
    runpy.run_module(name, run_name="__main__", alter_sys=True)
else:
    importlib.import_module(name).cli_main()
"""


def test_every_command_takes_the_flags(
    trained: tuple[Path, dict[str, Ended]], toy_data: Path, lm_data: Path, tmp_path: Path
) -> None:
    path, lm = str(checkpoint(trained, "fp32")), str(checkpoint(trained, "lm fp32"))
    (tmp_path / "input").write_text("ba da\n")
    validate = [str(toy_data), "--task", "translation", "--path", path, "--max-tokens", "500"]
    commands = {
        "fairseq_cli.validate": validate,
        "fairseq_cli.validate -m": validate,
        "fairseq_cli.generate": [str(toy_data), *PAIR, "--path", path],
        "fairseq_cli.interactive": [str(toy_data), *PAIR, "--path", path, "--input", str(tmp_path / "input")],
        "fairseq_cli.eval_lm": [str(lm_data), *LM, "--path", lm, "--gen-subset", "valid"],
    }
    types = {"--bf16": "bfloat16", "--fp16": "float16", "--no-progress-bar": "float32"}
    lines = {
        f"{command} {flag}": [
            "python",
            "-c",
            WATCHED,
            *f"{command} script".split()[:2],
            *line,
            *PLUGIN,
            "--cpu",
            flag,
        ]
        for command, line in commands.items()
        for flag in (types if "validate" in command else ["--bf16"])
    }
    for name, ended in run_lines(tmp_path / "logs", lines).items():
        assert ended.status == 0, ended.said[-3000:]
        seen = {line for line in ended.said.splitlines() if line.startswith("SEEN")}
        assert seen == {f"SEEN torch.{types[name.split()[-1]]}"}, name


def test_a_hub_reads_it_in_fp32(trained: tuple[Path, dict[str, Ended]], toy_data: Path) -> None:
    model = MHETransformerModel.from_pretrained(
        str(trained[0] / "bf16"), "checkpoint_last.pt", data_name_or_path=str(toy_data)
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert isinstance(model.translate("ba da"), str)


def test_two_precisions_are_one_sentence(toy_data: Path, tmp_path: Path) -> None:
    lines = {
        "two": translation(toy_data, tmp_path / "a", "--fp16", "--bf16"),
        "tpu": translation(toy_data, tmp_path / "b", "--bf16", "--tpu"),
    }
    said = {
        "two": "mhe_fairseq: error: --fp16 and --bf16 are two precisions; give one of them",
        "tpu": "mhe_fairseq: error: --tpu needs torch_xla, which is not installed; without --tpu, ",
    }
    for name, ended in run_lines(tmp_path / "logs", lines).items():
        assert ended.status == 1 and "Traceback" not in ended.said
        assert ended.last.startswith(said[name])
        assert ended.said.count("mhe_fairseq: error: ") == 1
