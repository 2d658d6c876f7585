"""Checkpoints whose config lacks what fairseq fills in later, or names files that are not here any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli.checkpoint import read_with_data
from mhe_fairseq.cli.main import main
from mhe_fairseq.errors import MHEError
from tests.commands import CRITERION, PLUGIN, hypotheses, train_line
from tests.helpers import REPO, TOY_SIZES, TOY_SOURCE, TOY_TARGET, run_command


def without_languages(line: list[str]) -> list[str]:
    at = line.index("-s")
    assert line[at : at + 4] == ["-s", TOY_SOURCE, "-t", TOY_TARGET]
    return line[:at] + line[at + 4 :]


@pytest.fixture(scope="module")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data-bin, ours/ and softmax/, trained in it without -s and -t. The embeddings that they
    began with are gone."""
    folder = tmp_path_factory.mktemp("languages")
    shutil.copytree(toy_data, folder / "data-bin")
    words = [line.split()[0] for line in (toy_data / f"dict.{TOY_SOURCE}.txt").read_text().splitlines()]
    start = folder / "start.vec"
    start.write_text(f"{len(words)} 64\n" + "".join(f"{word} {' '.join(['0.1'] * 64)}\n" for word in words))
    flags = ["--encoder-embed-path", "start.vec", "--max-update", "1", "--no-epoch-checkpoints"]
    for name, arch, criterion in (
        ("ours", "mhe_transformer_tiny", [*CRITERION, "--mhe-head", "sampling"]),
        ("softmax", "transformer_tiny", ["--criterion", "cross_entropy"]),
    ):
        line = train_line(Path("data-bin"), Path(name), *flags, *criterion, arch=arch)
        run_command(without_languages(line), cwd=folder)
        task = torch.load(folder / name / "checkpoint_last.pt", weights_only=True)["cfg"]["task"]
        assert task["source_lang"] is None and task["target_lang"] is None
    start.unlink()
    return folder


@pytest.mark.slow
def test_analyze_infers_the_languages(trained: Path) -> None:
    line = ["mhe", "analyze", "ours/checkpoint_last.pt", "data-bin"]
    line += ["--against", "softmax/checkpoint_last.pt", "--json", "analysis.json"]
    run_command(line, cwd=trained)
    report = json.loads((trained / "analysis.json").read_text())
    assert report["heads"] == ["sampling", "softmax"] and report["data"] == "data-bin"


@pytest.mark.slow
def test_generate_and_an_exported_checkpoint_infer_them_too(trained: Path) -> None:
    run_command(["mhe", "export", "ours/checkpoint_last.pt", "-o", "stock.pt", "--force"], cwd=trained)
    found = []
    for path, plugin in (("ours/checkpoint_last.pt", PLUGIN), ("stock.pt", [])):
        line = ["fairseq-generate", "data-bin", "--path", path, *plugin, "--cpu", "--beam", "2"]
        line += ["--required-batch-size-multiple", "1", "--max-len-b", "10"]
        found.append(hypotheses(run_command(line, cwd=trained).stdout))
    assert len(found[0]) == TOY_SIZES["test"]
    assert {n: text for n, (_, text) in found[0].items()} == {n: text for n, (_, text) in found[1].items()}


@pytest.mark.slow
def test_updates_are_timed_on_another_machine(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained by eight processes, with the plugin, the data and the logs elsewhere."""
    state = torch.load(trained / "ours" / "checkpoint_last.pt", weights_only=True)
    state["cfg"]["distributed_training"]["distributed_world_size"] = 8
    state["cfg"]["common"].update(user_dir="/nowhere/mhe_fairseq", tensorboard_logdir="/nowhere/logs")
    path = tmp_path / "of_eight.pt"
    torch.save(state, path)
    script = ["python", str(REPO / "scripts" / "study" / "time_updates.py"), str(path), "--rounds", "1"]
    done = run_command([*script, "--updates", "1"], cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert f"was trained on the data data-bin, which is not here, in {tmp_path}" in done.stderr
    done = run_command([*script, "--updates", "1", "--data", str(trained / "data-bin")], cwd=tmp_path)
    assert len(json.loads(done.stdout)["seconds"]) == 1
    assert main(["analyze", str(path), str(trained / "data-bin"), "--limit", "50"]) == 0
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.slow
def test_other_data_may_be_of_another_pair(trained: Path, tmp_path: Path) -> None:
    data = tmp_path / "data-bin"
    data.mkdir()
    for path in (trained / "data-bin").iterdir():
        name = path.name.replace(f"{TOY_SOURCE}-{TOY_TARGET}", "x-y")
        name = name.replace(f".{TOY_SOURCE}.", ".x.").replace(f".{TOY_TARGET}.", ".y.")
        shutil.copy(path, data / name)
    state = read_with_data(trained / "ours" / "checkpoint_last.pt", str(data))
    task = state["cfg"].task
    assert (task.source_lang, task.target_lang, task.data) == ("x", "y", str(data))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("more", rf"has several pairs \(a-b, {TOY_SOURCE}-{TOY_TARGET}\); give a folder with one pair"),
        ("empty", "has no pair of languages; give a folder with one pair, or train with -s and -t"),
        ("dictionary", rf"has no dict.{TOY_TARGET}.txt, which checkpoint .* wants"),
        ("folder", "there is no data directory"),
    ],
)
def test_data_that_does_not_say_it(change: str, said: str, trained: Path, tmp_path: Path) -> None:
    data = tmp_path / "data-bin"
    if change == "empty":
        data.mkdir()
    elif change != "folder":
        shutil.copytree(trained / "data-bin", data)
    if change == "more":
        (data / "train.a-b.a.idx").touch()
    elif change == "dictionary":
        (data / f"dict.{TOY_TARGET}.txt").unlink()
    with pytest.raises(MHEError, match=said):
        read_with_data(trained / "ours" / "checkpoint_last.pt", str(data))
