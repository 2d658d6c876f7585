"""scripts/data/prepare_multilabel.py: formats, and what is wrong with documents and labels."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path

import pytest

from mhe_fairseq.cli import assign
from mhe_fairseq.cli.main import main as mhe
from mhe_fairseq.coding import Codebook
from scripts.common.files import PrepareError
from scripts.data.label_sources import Source, find_sources
from scripts.data.prepare_multilabel import check, main
from tests.labelled import LABELS, prepare, write_documents

SETS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What was prepared of the toy documents, and what was said."""
    folder = tmp_path_factory.mktemp("multilabel")
    write_documents(folder / "source")
    return folder, prepare(folder / "source", folder / "out")


def documents(source: Source) -> list[tuple[tuple[str, ...], str]]:
    return [(document.labels, document.text) for document in source.documents()]


def test_what_is_written(made: tuple[Path, str]) -> None:
    out = made[0] / "out"
    symbols = [line.split()[0] for line in (out / "data-bin/label/dict.txt").read_text().splitlines()]
    assert sorted(symbols) == sorted(label.replace(" ", "\u2581") for label in LABELS)
    counts = [int(line.split()[1]) for line in (out / "data-bin/label/dict.txt").read_text().splitlines()]
    assert counts == sorted(counts, reverse=True)
    assert json.loads((out / "data-bin/multilabel.json").read_text()) == {
        "documents": 199, "a": 0.55, "b": 1.5,
    }  # fmt: skip
    book = Codebook.load(out / "labels.codes")
    assert len(book) == len(LABELS)
    for part in ("input0", "label"):
        assert all((out / "data-bin" / part / f"{split}.idx").is_file() for split in SETS)


def test_nothing_is_lost_in_silence(made: tuple[Path, str]) -> None:
    said = made[1]
    assert "train: 200 documents" in said
    assert "1 without a label, left out (lines 4)" in said
    assert "1 without a text, kept" in said
    assert "1 labels given twice in a document, taken once" in said
    assert "1 without a label, not counted in the measures (lines 2)" in said
    assert "1 labels, 1 times, that no training document has: never found (unheard)" in said


def test_lengths_that_are_suggested_are_of_labels(
    made: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of twelve both plans are the same.
    monkeypatch.setattr(assign, "plan_label_lengths", lambda size: (6, size // 6))
    line = ["assign", "--labels", "--data", str(made[0] / "out" / "data-bin"), "-o", str(tmp_path / "codes")]
    assert mhe([*line, "--lengths", "12"]) == 1
    assert "at least two lengths such as 6,2; got 12" in capsys.readouterr().err


def test_it_may_be_run_again(made: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = made[0]
    line = ["--source", str(folder / "source"), "--out", str(folder / "out")]
    assert main(line) == 0
    assert "labels.codes: already there" in capsys.readouterr().out
    assert main([*line, "--by", "random"]) == 1
    assert "was prepared with other by" in capsys.readouterr().err


def test_blanks_between_labels(tmp_path: Path) -> None:
    """As xmc-debian has them, compressed."""
    for split in SETS:
        (tmp_path / f"{split}.tsv.xz").write_bytes(lzma.compress(b"dpkg zlib1g\ta text\n\tnothing\n"))
    found = find_sources(tmp_path, None)["train"]
    assert documents(found) == [(("dpkg", "zlib1g"), "a text"), ((), "nothing")]
    assert check(found).unlabelled == [2]


def test_labels_with_commas_and_blanks(tmp_path: Path) -> None:
    for split in SETS:
        (tmp_path / f"{split}.tsv").write_text('"a, b",c d\tx\n')
    assert documents(find_sources(tmp_path, None)["test"]) == [(("a, b", "c d"), "x")]
    assert documents(find_sources(tmp_path, "blank")["test"]) == [(('"a,', 'b",c', "d"), "x")]


@pytest.mark.parametrize("named", [False, True])
def test_the_repositorys_files(tmp_path: Path, named: bool) -> None:
    for short in ("trn", "tst"):
        (tmp_path / f"{short}_X_Y.txt").write_text("2 3\n0:1 2:1\n1:1\n")
        (tmp_path / f"{short}_X.txt").write_text("one text\nand another\n")
    if named:
        (tmp_path / "Y.txt").write_text("first\nthe second\nthird\n")
    found = find_sources(tmp_path, None)
    assert set(found) == {"train", "test"}
    expected = [("first", "third"), ("the second",)] if named else [("0", "2"), ("1",)]
    assert documents(found["train"]) == list(zip(expected, ["one text", "and another"], strict=True))


def test_labels_and_texts_in_two_files(tmp_path: Path) -> None:
    for short, long in (("trn", "train"), ("tst", "test")):
        (tmp_path / f"Y.{short}.txt").write_text("a b\nc\n")
        (tmp_path / f"{long}_raw_texts.txt").write_text("one\ntwo\n")
    assert documents(find_sources(tmp_path, None)["test"]) == [(("a", "b"), "one"), (("c",), "two")]
    (tmp_path / "test_raw_texts.txt").write_text("one\n")
    with pytest.raises(PrepareError, match=r"labels of 2 documents and .* has 1 texts"):
        check(find_sources(tmp_path, None)["test"])


def test_some_of_the_training_set_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for short in ("trn", "tst"):
        (tmp_path / f"{short}_X_Y.txt").write_text("40 4\n" + "0:1 2:1\n1:1\n" * 20)
        (tmp_path / f"{short}_X.txt").write_text("one text\nand another\n" * 20)
    (tmp_path / "Y.txt").write_text("first\nthe second\nthird\nfourth\n")
    assert main(["--source", str(tmp_path), "--out", str(tmp_path / "out"), "--by", "frequency"]) == 0
    said = capsys.readouterr().out
    assert "valid: 2 documents of the training set" in said
    assert "1 of 4 have no training document, left out (fourth)" in said
    lines = {name: (tmp_path / "out/parts/label/tokens" / name).read_text().splitlines() for name in SETS}
    assert [len(lines[name]) for name in SETS] == [38, 2, 40]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a text without one\n", "line 1 of .*train.tsv has no tab"),
        ('"a, b\tx\n', "line 1 of .* has a quotation mark without its other"),
        ("</s>\tx\n", "line 1 of .* has the label '</s>', one of fairseq's own"),
        ("\tx\n\ty\n", "no training document has a label"),
        ("a b,a\u2581b\tx\n", "the labels 'a b' and 'a\u2581b' are the same but for blanks"),
        ("\n", "line 1 of .* is empty"),
    ],
)
def test_bad_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (tmp_path / "source").mkdir()
    for split in SETS:
        (tmp_path / "source" / f"{split}.tsv").write_text(text)
    line = ["--source", str(tmp_path / "source"), "--out", str(tmp_path / "out"), "--separator", "comma"]
    assert main(line) == 1
    error = capsys.readouterr().err
    assert error.startswith("prepare_multilabel.py: error: ") and error.count("\n") == 1
    assert re.search(said, error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--propensity", "much"], "two numbers A,B such as 0.55,1.5; got much"),
        (["--words", "3"], "--words must be at least 16, got 3"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--model", "spm.model"], "--dict and --model go together"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    write_documents(tmp_path / "source")
    assert main(["--source", str(tmp_path / "source"), "--out", str(tmp_path / "out"), *flags]) == 1
    assert said in capsys.readouterr().err


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="there is no train set"):
        find_sources(tmp_path, None)
    (tmp_path / "trn_X.txt").write_text("a\n")
    with pytest.raises(PrepareError, match=r"one of two files, and the other is missing: trn_X_Y.txt"):
        find_sources(tmp_path, None)
    with pytest.raises(PrepareError, match="is not a folder"):
        find_sources(tmp_path / "nowhere", None)
