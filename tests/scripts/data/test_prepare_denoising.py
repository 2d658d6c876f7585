"""scripts/data/prepare_denoising.py, run for real on tiny files."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
import sentencepiece

from scripts.data import prepare_denoising
from tests.helpers import write_toy_corpus

SIZES = {"train": 60, "valid": 9, "test": 9}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    write_toy_corpus(tmp_path / "pair", SIZES)
    return tmp_path / "pair"


def run(pair: Path, mono: Path, out: Path, langs: str = "src,tgt", *more: str) -> int:
    line = ["--mono", str(mono), "--langs", langs, "--source", str(pair), "--src", "src", "--tgt", "tgt"]
    return prepare_denoising.main([*line, "--pieces", "64", "--workers", "1", "--out", str(out), *more])


def test_one_dictionary_for_all_text(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mono, out = tmp_path / "mono", tmp_path / "out"
    mono.mkdir()
    for split in ("train", "valid"):
        text = (pair / f"{split}.src").read_text().replace("\n", "\n\n", 3)
        with lzma.open(mono / f"{split}.src.xz", "wt") as file:
            file.write(text)
        (mono / f"{split}.tgt").write_text((pair / f"{split}.tgt").read_text())
    assert run(pair, mono, out) == 0
    words = [line.split() for line in (out / "dict.txt").read_text().splitlines()]
    # With fairseq's four symbols it is the size asked for.
    assert len(words) == 60 and sum(int(count) for _, count in words) > 0
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    for folder, name in (("mono", "train.src"), ("pair", "test.tgt")):
        pieces = (out / folder / name).read_text().splitlines()
        expected = (pair / name).read_text().splitlines()
        assert [model.decode(line.split()) for line in pieces] == expected
    assert not (out / "mono" / "test.src").exists()
    before = (out / "dict.txt").stat().st_mtime_ns
    assert run(pair, mono, out) == 0
    assert (out / "dict.txt").stat().st_mtime_ns == before
    assert "already there" in capsys.readouterr().out
    # One more symbol, and what makes the size a multiple of 8.
    assert run(pair, mono, tmp_path / "masked", "src,tgt", "--mask") == 0
    more = [line.split() for line in (tmp_path / "masked" / "dict.txt").read_text().splitlines()]
    assert more[:61] == [*words, ["<mask>", "0"]] and len(more) == 68


def test_a_part_of_the_text_and_pieces_of_both(pair: Path, tmp_path: Path) -> None:
    """A text without the target's letters; a few pairs, so few lines of the text for the pieces."""
    mono, out = tmp_path / "mono", tmp_path / "out"
    mono.mkdir()
    lines = [f"{'badega' if n % 2 else 'fudo'} {'x' * (n % 7)}" for n in range(60)]
    for split in ("train", "valid"):
        (mono / f"{split}.src").write_text("\n".join(lines) + "\n")
    assert run(pair, mono, out, "src", "--joint", "--lines", "30", "--pairs", "20") == 0
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))

    def text(name: str) -> list[str]:
        return [model.decode(line.split()) for line in (out / name).read_text().splitlines()]

    assert [line.strip() for line in text("mono/train.src")] == [line.strip() for line in lines[1::2]]
    assert len(text("mono/valid.src")) == 60
    for side in ("src", "tgt"):
        assert text(f"pair/train.{side}") == (pair / f"train.{side}").read_text().splitlines()[:20]
        assert len(text(f"pair/test.{side}")) == 9
    assert len((out / "text" / "pieces.train.src").read_text().splitlines()) == 20
    counts = dict(line.split() for line in (out / "dict.txt").read_text().splitlines())
    assert any(word.isupper() and int(count) for word, count in counts.items())
    # Without --joint the target's letters are unknown.
    assert run(pair, mono, tmp_path / "mono-only", "src", "--pieces", "32") == 0
    words = (tmp_path / "mono-only" / "dict.txt").read_text().splitlines()
    assert not any(word.split()[0].isupper() for word in words)
    # Another part is another preparation.
    assert run(pair, mono, out, "src", "--joint", "--lines", "30", "--pairs", "21") == 1


@pytest.mark.parametrize(
    ("langs", "more", "said"),
    [
        ("src,src", [], "--langs are different languages such as en,de, got 'src,src'"),
        ("src,", [], "--langs are different languages"),
        ("src,xx", [], "there is no train.xx or train.xx.xz in"),
        ("src,tgt", ["--pieces", "7"], "--pieces must be at least 16, got 7"),
        ("src,tgt", ["--tgt", "src"], "--src and --tgt are both src"),
        ("src,tgt", ["--lines", "-1"], "--lines must be at least 1, or 0 for all, got -1"),
        ("src,tgt", ["--pairs", "-2"], "--pairs must be at least 1, or 0 for all, got -2"),
        ("src,tgt", ["--workers", "0"], "--workers must be at least 1, got 0"),
        ("src,tgt", ["--mono", "nowhere"], "--mono nowhere is not a folder"),
        ("src,tgt", ["--source", "nowhere"], "--source nowhere is not a folder"),
    ],
)
def test_bad_arguments(
    pair: Path, langs: str, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pair, pair, tmp_path / "out", langs, *more) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "dict.txt").exists()


def test_blank_text(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mono").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "mono" / f"{split}.src").write_text("\n \n")
    assert run(pair, tmp_path / "mono", tmp_path / "out", "src") == 1
    assert "train.src has only blank lines" in capsys.readouterr().err
