"""scripts/data/prepare_pairs.py and split_pairs.py, run for real."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from scripts.data import prepare_pairs, split_pairs
from tests.helpers import REPO


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for split, count in (("train", 120), ("valid", 8), ("test", 8)):
        for lang in ("en", "de"):
            with lzma.open(REPO / "examples" / "translation" / "data" / f"{split}.{lang}.xz", "rt") as file:
                lines = [next(file) for _ in range(count)]
            (folder / f"{split}.{lang}").write_text("".join(lines))
    return folder


def test_pairs_share_their_pieces(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--pair", f"en-de={source}", "--pair", f"en-xx={source}:de-en", "--vocab-size", "300"]
    assert prepare_pairs.main([*words, "--out", str(out)]) == 0
    names = {
        f"{s}.{p}.{lang}"
        for s in ("train", "valid", "test")
        for p in ("en-de", "en-xx")
        for lang in p.split("-")
    }
    assert {path.name for path in (out / "pieces").iterdir()} == names
    # The second pair's English is the German of the files.
    assert (out / "text" / "test.en-xx.en").read_text() == (source / "test.de").read_text()
    known = {line.split()[0] for line in (out / "dict.txt").read_text().splitlines()}
    used = {word for name in names for word in (out / "pieces" / name).read_text().split() if "train" in name}
    assert used <= known and len(known) % 8 == 4  # with fairseq's four symbols a multiple of 8
    assert len(known) >= 297


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["en"], "--pair en is not two languages and a folder, such as en-de=DIR"),
        (["en-en=x"], "--pair en-en=x is not two languages"),
        (["en-de=SOURCE", "de-en=SOURCE"], "--pair de-en is given twice; a pair is used in both directions"),
        (["en-de=nowhere"], "--pair en-de: nowhere is not a folder"),
        (["en-fr=SOURCE"], "there is no train.fr or train.fr.xz in"),
    ],
)
def test_bad_pairs(
    pairs: list[str], said: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for pair in pairs for word in ("--pair", pair.replace("SOURCE", str(source)))]
    assert prepare_pairs.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def write_tagged(folder: Path, rows: dict[str, list[tuple[str, str, str, str]]]) -> None:
    """Rows of (language, language, line, line) as prepare_translation.py writes them."""
    (folder / "pieces").mkdir(parents=True)
    for split, pairs in rows.items():
        lines = [
            row
            for one, two, left, right in pairs
            for row in ((f"<2{two}> {left}", right), (f"<2{one}> {right}", left))
        ]
        for side, name in enumerate(("src", "tgt")):
            text = "".join(f"{line[side]}\n" for line in lines)
            (folder / "pieces" / f"{split}.{name}").write_text(text)
    (folder / "dict.txt").write_text("a 9\nb 3\n<2de> 0\n<2en> 0\n<2fr> 0\n<2yo> 0\n")


def test_tagged_text_is_taken_apart(tmp_path: Path) -> None:
    german, french, yoruba = ("en", "de", "a b", "b"), ("en", "fr", "b", "a"), ("en", "yo", "b b", "a a")
    rows = {"train": [german, french, german, yoruba], "valid": [german, french], "test": [french]}
    write_tagged(tmp_path / "data", rows)
    out = tmp_path / "out"
    assert split_pairs.main(["--pieces", str(tmp_path / "data"), "--out", str(out)]) == 0
    assert (out / "train.en-de.en").read_text() == "a b\na b\n"
    assert (out / "train.en-de.de").read_text() == "b\nb\n"
    assert (out / "test.en-fr.fr").read_text() == "a\n"
    assert (out / "pairs").read_text() == "en-de en-fr\n"
    assert (out / "directions").read_text() == "en-de,de-en,en-fr,fr-en\n"
    assert (out / "tested").read_text() == "en-fr fr-en\n"
    assert (out / "langs").read_text() == "de\nen\nfr\n"
    assert "<2" not in (out / "dict.txt").read_text() and "a 9\nb 3\n" in (out / "dict.txt").read_text()


def test_text_without_tags_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {split: [("en", "de", "a", "b")] for split in ("train", "valid", "test")}
    write_tagged(tmp_path / "data", rows)
    source = tmp_path / "data" / "pieces" / "valid.src"
    source.write_text(source.read_text().replace("<2de> ", ""))
    assert split_pairs.main(["--pieces", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 1
    assert "lines 1 and 2 of" in capsys.readouterr().err
