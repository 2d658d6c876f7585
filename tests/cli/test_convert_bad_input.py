"""`mhe convert` of what it cannot convert: one sentence, exit 1, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli import convert_run
from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook
from tests.cli.test_convert import refused
from tests.commands import CRITERION, train
from tests.damaged import DAMAGED, write_damaged
from tests.helpers import TOY_TARGET

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow


@pytest.fixture
def source(stock_models: dict[str, Path]) -> Path:
    return stock_models["transformer"]


def changed(source: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with something else in it."""
    state = torch.load(source, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_checkpoints(
    what: str, source: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "given.pt"
    write_damaged(what, path, source.read_bytes())
    before = sorted(tmp_path.iterdir())
    said = refused([path, "--data", toy_data, "--head", "cascade", "-o", tmp_path / "out.pt"], capsys)
    assert DAMAGED[what] in said and str(path) in said
    assert sorted(tmp_path.iterdir()) == before


def _arch(name: str, **options: Any) -> Callable[[dict[str, Any]], object]:
    def change(state: dict[str, Any]) -> None:
        for key, value in {"arch": name, "_name": name, **options}.items():
            setattr(state["cfg"]["model"], key, value)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_arch("lstm"), "is of --arch lstm; convert is for transformer, transformer_lm, roberta and bart"),
        (
            _arch("mhe_transformer_tiny", mhe_head="cascade"),
            "has a cascade head already, there is nothing to",
        ),
        (
            _arch("mhe_transformer_tiny", mhe_head="product"),
            "has a product head, and a cascade is made of a softmax; convert it to --head softmax first",
        ),
        (
            lambda state: state["model"].update(
                {
                    name: torch.randn(50, 64)
                    for name in state["model"]
                    if name.endswith(("embed_tokens.weight", "output_projection.weight"))
                }
            ),
            "is for 50 tokens and the dictionary in",
        ),
        (
            lambda state: [
                state["model"][name].neg_().mul_(3)
                for name in ("encoder.embed_tokens.weight", "decoder.layer_norm.weight")
                if name in state["model"]
            ],
            "give data binarised with the dictionaries it was trained with",
        ),
    ],
    ids=["lstm", "cascade", "product", "rows", "scrambled"],
)
def test_other_checkpoints(
    change: Callable[[dict[str, Any]], object],
    sentence: str,
    source: Path,
    toy_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = changed(source, tmp_path / "given.pt", change)
    said = refused([path, "--data", toy_data, "--head", "cascade", "-o", tmp_path / "out.pt"], capsys)
    assert sentence in said and str(path) in said
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("lengths", "pinned", "sentence"),
    [
        ((10, 10), "other", "was made for another dictionary (fingerprint other, this one has"),
        ((10, 5), "", "is for 50 tokens and the dictionary has"),
        ((5, 5, 5), "", "has 3 lengths, 5,5,5, and --head cascade needs 2, such as"),
        ((100,), "", "has 1 lengths, 100, and --head cascade needs 2, such as"),
    ],
)
def test_codebooks_that_do_not_fit(
    lengths: tuple[int, ...],
    pinned: str,
    sentence: str,
    source: Path,
    toy_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fairseq.data import Dictionary

    size = 50 if lengths == (10, 5) else len(Dictionary.load(str(toy_data / f"dict.{TOY_TARGET}.txt")))
    codes = tmp_path / "codes"
    Codebook(lengths, vocab_size=size, dictionary=pinned).save(codes)
    said = refused(
        [source, "--data", toy_data, "--head", "cascade", "--codebook", codes, "-o", tmp_path / "out.pt"],
        capsys,
    )
    assert sentence in said and str(codes) in said
    assert sorted(tmp_path.iterdir()) == [codes]


def test_data_that_is_not_there(
    source: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "out.pt"
    output.parent.mkdir()
    nowhere = tmp_path / "nowhere"
    said = refused([source, "--data", nowhere, "--head", "cascade", "-o", output], capsys)
    assert f"there is no data directory {nowhere}" in said
    data = Path(shutil.copytree(toy_data, tmp_path / "data-bin"))
    for file in data.glob("train.*"):
        file.unlink()
    assert "train" in refused([source, "--data", data, "--head", "cascade", "-o", output], capsys)
    for file in data.glob("valid.*"):
        file.unlink()
    said = refused([source, "--data", data, "--head", "cascade", "-o", output], capsys)
    assert f"the data {data} has no split 'valid'" in said
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tokens", "1"], "--tokens is a number of tokens to fit a head on, at least 2; got 1"),
        (["--seed", "-1"], "--seed must be a whole number from 0 to 2**63 - 1, got -1"),
        (["--group-prototypes", "0"], "--group-prototypes must be 1..64, got 0"),
        (["--group-prototypes", "65"], "--group-prototypes must be 1..64, got 65"),
        (
            ["--group-prototypes", "2", "--head", "sampling"],
            "--group-prototypes is for --head cascade; the head is sampling",
        ),
    ],
)
def test_numbers(
    flags: list[str],
    sentence: str,
    source: Path,
    toy_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sentence in refused(
        [source, "--data", toy_data, "--head", "cascade", "-o", tmp_path / "out.pt", *flags], capsys
    )
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_written(
    source: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.pt"
    there.write_text("mine")
    line = [source, "--data", toy_data, "--head", "cascade", "-o"]
    assert "exists; give another one, or --force to replace it" in refused([*line, there], capsys)
    (tmp_path / "new.codes").write_text("mine")
    said = refused([*line, tmp_path / "new.pt"], capsys)
    assert f"the output {tmp_path / 'new.codes'} exists" in said
    content = source.read_bytes()
    assert "is the checkpoint to convert" in refused([*line, source, "--force"], capsys)
    assert source.read_bytes() == content
    assert f"there is no directory {tmp_path / 'none'}" in refused([*line, tmp_path / "none/out.pt"], capsys)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "there.pt": "mine",
        "new.codes": "mine",
    }


@pytest.mark.parametrize("when", ["fit", "save"])
def test_an_interrupted_conversion_leaves_what_was_there(
    when: str,
    source: Path,
    toy_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out.pt"
    output.write_text("mine")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    if when == "fit":
        monkeypatch.setattr(convert_run, "fit", interrupted)
    else:
        monkeypatch.setattr(torch, "save", half)
    line = [
        "convert",
        str(source),
        "--data",
        str(toy_data),
        "--head",
        "cascade",
        "-o",
        str(output),
        "--force",
        "--tokens",
        "50",
    ]
    assert main(line) == 130
    assert capsys.readouterr().err.rstrip().endswith("mhe: interrupted")
    assert list(tmp_path.iterdir()) == [output] and output.read_text() == "mine"


def test_a_training_from_a_stock_checkpoint_is_told_of_the_command(
    source: Path, toy_data: Path, tmp_path: Path
) -> None:
    flags = [*CRITERION, "--mhe-head", "cascade", "--share-all-embeddings", "--max-update", "1"]
    done = train(toy_data, tmp_path, *flags, "--finetune-from-model", str(source), check=False)
    assert done.returncode != 0
    assert "the checkpoint has no mhe head" in done.stderr and "`mhe convert` makes one" in done.stderr
