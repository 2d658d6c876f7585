"""`mhe analyze` of what it cannot analyze: one sentence, exit 1, and nothing is written."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook
from tests.commands import train
from tests.damaged import DAMAGED, write_damaged
from tests.test_bad_input import Exploit


@pytest.fixture(scope="module")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of fairseq's own transformer, hardly trained."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--criterion", "cross_entropy", "--max-update", "1", "--disable-validation"]
    train(toy_data, folder, *flags, arch="transformer_tiny")
    return folder / "checkpoint_last.pt"


@pytest.fixture
def data(toy_data: Path, tmp_path: Path) -> Path:
    """A copy of the toy data that a test may spoil."""
    return Path(shutil.copytree(toy_data, tmp_path / "data-bin"))


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that ``mhe analyze`` ends with."""
    assert main(["analyze", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    last = printed.err.rstrip().splitlines()[-1]
    assert last.startswith("mhe: ") and printed.err.count("mhe: ") == 1
    assert "Traceback" not in printed.err
    return last


def changed(source: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with something else in it."""
    state = torch.load(source, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        *DAMAGED.items(),
        ("hostile", "system, which is no part of a fairseq checkpoint"),
        ("task", "is of --task sentence_prediction, whose targets are not tokens"),
        ("arch", "cannot be built for the data"),
        ("nan", "has a loss of nan: some probabilities are NaN"),
        ("weights", "cannot be built for the data"),
    ],
)
def test_checkpoints(
    what: str,
    sentence: str,
    trained: Path,
    toy_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, marker = tmp_path / "given.pt", tmp_path / "was_run"
    content = trained.read_bytes()
    if what in DAMAGED:
        write_damaged(what, path, content)
    elif what == "hostile":
        changed(trained, path, lambda state: state.update(x=Exploit(marker)))
    elif what == "task":
        changed(trained, path, lambda state: state["cfg"]["task"].update(_name="sentence_prediction"))
    elif what == "arch":
        changed(trained, path, lambda state: setattr(state["cfg"]["model"], "encoder_embed_dim", 12))
    elif what == "nan":
        changed(trained, path, lambda state: state["model"]["decoder.embed_tokens.weight"].fill_(torch.nan))
    elif what == "weights":
        changed(trained, path, lambda state: state["model"].pop("decoder.embed_tokens.weight"))
    said = refused([path, toy_data, "--json", tmp_path / "out.json"], capsys)
    assert str(path) in said and sentence in said
    assert not marker.exists() and not (tmp_path / "out.json").exists()
    # The second model is read like the first.
    assert sentence in refused([trained, toy_data, "--against", path], capsys)


def empty(folder: Path) -> None:
    for side in ("src", "tgt"):
        shutil.copy(folder / f"test.src-tgt.{side}.idx", folder / f"none.src-tgt.{side}.idx")
        (folder / f"none.src-tgt.{side}.bin").touch()


def cut(folder: Path) -> None:
    path = folder / "valid.src-tgt.tgt.bin"
    path.write_bytes(path.read_bytes()[:-10])


def other_dictionary(folder: Path) -> None:
    for side in ("src", "tgt"):
        with (folder / f"dict.{side}.txt").open("a") as file:
            file.write("another 1\n")


@pytest.mark.parametrize(
    ("spoil", "flags", "sentence"),
    [
        (shutil.rmtree, [], "there is no data directory"),
        (lambda folder: (folder / "dict.tgt.txt").unlink(), [], "has no dict.tgt.txt, which checkpoint"),
        (lambda folder: (folder / "dict.tgt.txt").write_text("a b c\n"), [], "cannot be read as --task tr"),
        (other_dictionary, [], "is for 88 tokens and the dictionary in"),
        (lambda folder: None, ["--subset", "dev"], "has no split 'dev': expected dev.src-tgt.src.idx and"),
        (lambda folder: None, ["--subset", "dev"], "(splits there: test, train, valid)"),
        (empty, ["--subset", "none"], "the split none of"),
        (cut, [], "bytes, its index says"),
        (lambda folder: (folder / "valid.src-tgt.tgt.bin").unlink(), [], "one of the two is missing"),
        (
            lambda folder: [path.unlink() for path in folder.glob("train*")],
            [],
            "has no binarised target side: expected train.*-tgt.tgt.idx",
        ),
    ],
)  # fmt: skip
def test_data(
    spoil: Callable[[Path], object],
    flags: list[str],
    sentence: str,
    trained: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(data)
    said = refused([trained, data, *flags], capsys)
    assert sentence in said and str(data) in said


def test_numbers_and_codebooks(
    trained: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: object) -> str:
        return refused([trained, toy_data, *flags], capsys)

    for flag in ("--max-tokens", "--limit", "--top"):
        assert f"{flag} must be at least 1, got 0" in said(flag, 0)
    assert "--max-tokens 3 is less than the longest sentence of valid, " in said("--max-tokens", 3)
    assert "argument --limit: invalid int value: 'all'" in said("--limit", "all")
    codes = tmp_path / "codes"
    assert f"there is no codebook file {codes}" in said("--codebook", codes)
    Codebook((2, 3), vocab_size=6).save(codes)
    assert f"codebook file {codes} is for 6 tokens and the dictionary has 88" in said("--codebook", codes)
    Codebook((8, 11), dictionary="0" * 16).save(codes)
    assert f"codebook file {codes} was made for another dictionary" in said("--codebook", codes)


def test_models_of_different_text(
    trained: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def turned(state: dict[str, Any]) -> None:
        state["cfg"]["task"].update(source_lang="tgt", target_lang="src")

    other = changed(trained, tmp_path / "other.pt", turned)
    said = refused([trained, toy_data, "--against", other], capsys)
    assert "is of translation src-tgt and" in said and "of translation tgt-src; only models" in said


def test_where_it_cannot_be_written(
    trained: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = trained.read_bytes()
    out = tmp_path / "out"
    for flag in ("--json", "--png"):
        assert "is a directory" in refused([trained, toy_data, flag, tmp_path], capsys)
        assert "there is no directory" in refused([trained, toy_data, flag, tmp_path / "no" / "x"], capsys)
        assert "is a file that is read or written already" in refused(
            [trained, toy_data, flag, trained], capsys
        )
    assert "written already" in refused([trained, toy_data, "--json", out, "--png", out], capsys)
    assert trained.read_bytes() == content and list(tmp_path.iterdir()) == []


def test_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    # Told before the checkpoint is looked for, let alone scored.
    said = refused(["none.pt", tmp_path, "--png", tmp_path / "a.png"], capsys)
    assert "--png needs matplotlib, which is not installed; install it with: pip install" in said
