"""scripts/data/prepare_translation.py: cleaning, pieces, dictionary; nothing lost that should not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from scripts.common.files import evenly
from scripts.data.clean_pairs import Limits, unique
from scripts.data.prepare_translation import main
from tests.examples.mirror import Pairs, bundled

LONG = ("word " * 60).strip()


def write(folder: Path, split: str, pairs: Pairs, tags: list[str] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    for side, name in enumerate(("en", "de")):
        (folder / f"{split}.{name}").write_text(
            "".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8"
        )
    if tags is not None:
        (folder / f"{split}.tags").write_text("".join(f"{tag}\n" for tag in tags))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    for split, begin, end in (("train", 0, 300), ("valid", 0, 20), ("test", 0, 20)):
        write(folder, split, bundled(split, begin, end))
    return folder


def prepare(text: Path, out: Path, *more: str) -> int:
    line = ["--source", str(text), "--out", str(out), "--src", "en", "--tgt", "de", "--pieces", "400"]
    return main([*line, "--workers", "1", *more])


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def back(path: Path, model: Path) -> list[str]:
    """Pieces as text again."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [processor.decode(line.split()) for line in lines(path)]


def test_pieces_and_dictionary(text: Path, tmp_path: Path) -> None:
    odd = [("A question?", LONG), ("", "Leer"), ("Both sides, once", "Beide Seiten, einmal")]
    write(text, "train", bundled("train", 0, 300) + odd)
    write(text, "test", bundled("test", 0, 20) + odd)
    out = tmp_path / "out"
    assert prepare(text, out, "--ratio", "3") == 0
    train = back(out / "pieces" / "train.en", out / "spm.model")
    assert train[-1] == "Both sides, once" and "A question?" not in train and len(train) <= 301
    assert len(lines(out / "pieces" / "train.de")) == len(train)
    # The test set is whole, whatever is in it.
    assert len(lines(out / "pieces" / "test.en")) == len(lines(out / "pieces" / "test.de")) == 23
    assert back(out / "pieces" / "test.de", out / "spm.model")[20] == LONG
    listed = dict(line.rsplit(" ", 1) for line in lines(out / "dict.txt"))
    assert len(listed) + 4 == 400
    used = [
        piece
        for side in ("en", "de")
        for line in lines(out / "pieces" / f"train.{side}")
        for piece in line.split()
    ]
    assert sum(map(int, listed.values())) == len(used) and set(used) <= set(listed)
    assert not list(out.rglob("*.tmp")) and not (out / "encoded").exists()


def test_words_of_moses_lowercased_and_split(text: Path, tmp_path: Path) -> None:
    """The standard setup of IWSLT14: cleaned, then every so many'th pair for validation."""
    train = bundled("train", 0, 99) + [
        ("It\u2019s here, isn't it?", "Es ist da, oder?"),
        ("One", LONG),
        ("Two", "Zwei"),
    ]
    write(text, "train", train)
    for side in ("en", "de"):
        (text / f"valid.{side}").unlink()
    out = tmp_path / "out"
    flags = ["--tokenize", "moses", "--normalize", "apostrophe", "--lowercase", "--max-words", "59"]
    assert prepare(text, out, *flags, "--ratio", "1.5", "--max-pieces", "0", "--valid-every", "10") == 0
    words = [[line.split() for line in lines(out / "words" / f"train.{side}")] for side in ("en", "de")]
    lengths = [sorted((len(left), len(right))) for left, right in zip(*words, strict=True)]
    fits = [long <= min(59, 1.5 * short) for short, long in lengths]
    kept = [" ".join(left).lower() for left, fit in zip(words[0], fits, strict=True) if fit]
    assert len(kept) < len(fits) - 1
    assert "it 's here , isn 't it ?" in kept and "one" not in kept and kept[-1] == "two"
    clean = [lines(out / "clean" / f"{split}.en") for split in ("valid", "train")]
    assert clean[0] == kept[9::10]
    assert clean[1] == [line for number, line in enumerate(kept, start=1) if number % 10]
    # Nothing is left out for the number of its pieces.
    for split, wanted in zip(("valid", "train"), clean, strict=True):
        assert back(out / "pieces" / f"{split}.en", out / "spm.model") == wanted


def test_tags(text: Path, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        count = len(lines(text / f"{split}.en"))
        write(text, split, bundled(split, 0, count), ["<2de>", "<2en>"] * (count // 2))
    out = tmp_path / "out"
    assert prepare(text, out, "--tags") == 0
    source = lines(out / "pieces" / "test.en")
    assert [line.split()[0] for line in source[:2]] == ["<2de>", "<2en>"]
    assert not any("<2" in line for line in lines(out / "pieces" / "test.de"))
    listed = [line.rsplit(" ", 1)[0] for line in lines(out / "dict.txt")]
    assert {"<2de>", "<2en>"} <= set(listed) and len(listed) + 4 == 400


def test_a_normalised_letter(text: Path, tmp_path: Path) -> None:
    write(text, "train", [*bundled("train", 0, 300), ("Of the", "\u015ei \u0163ara")])
    assert prepare(text, tmp_path / "out", "--normalize", "romanian", "--ratio", "0") == 0
    assert (
        back(tmp_path / "out" / "pieces" / "train.de", tmp_path / "out" / "spm.model")[-1]
        == "\u0218i \u021bara"
    )


def test_punctuation_and_words_of_moses(text: Path, tmp_path: Path) -> None:
    odd = "\u201eEin\u00a0Wort\u201c \u2013 und\x07 noch eins \u2026"
    write(text, "test", [("\u2018One\u2019 , two", odd)] * 2)
    assert prepare(text, tmp_path / "out", "--tokenize", "moses", "--normalize", "punctuation") == 0
    assert lines(tmp_path / "out" / "words" / "test.de")[0] == '" Ein Wort " - und noch eins ...'
    assert lines(tmp_path / "out" / "words" / "test.en")[0] == "'One ' , two"
    assert len(lines(tmp_path / "out" / "pieces" / "test.de")) == 2


def test_what_is_there_is_kept_and_a_stop_leaves_no_damage(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prepare(text, out) == 0
    wanted = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in ("dict.txt", "pieces/valid.de", "pieces/test.en"):
        (out / name).unlink()
    (out / "pieces" / "valid.de.tmp").write_text("cut sh")
    capsys.readouterr()
    assert prepare(text, out) == 0
    assert f"{out}/pieces/train.en: already there" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == wanted
    assert prepare(text, out, "--unique") == 1
    assert "was prepared with other unique" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pieces", "9"], "--pieces must be at least 16, got 9"),
        (["--ratio", "0.5"], "--ratio must be at least 1, or 0 for any, got 0.5"),
        (["--tgt", "en"], "--src and --tgt are both en"),
        (["--tgt", "fr"], "there is no train.fr or train.fr.xz in"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--tags"], "there is no train.tags"),
        (["--max-pieces", "1", "--ratio", "1"], "no pair of the train set is left after cleaning"),
    ],
)
def test_bad_settings(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert prepare(text, tmp_path / "out", *more) == 1
    error = capsys.readouterr().err
    assert error.startswith("prepare_translation.py: error: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "out").exists()


def test_sides_of_different_length(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text / "valid.de").write_text("nur eine\n")
    assert prepare(text, tmp_path / "out") == 1
    assert "valid.en has 20 lines and" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limits", "source", "target", "kept"),
    [
        (Limits(3, 1.5), "a b", "a b c", True),
        (Limits(3, 1.5), "a", "a b", False),
        (Limits(3, 1.5), "a b c d", "a b c d", False),
        (Limits(3, 0), "a", "a b c", True),
        (Limits(0, 2), "a b " * 500, "a " * 500, True),
        (Limits(3, 1.5), "", "a", False),
    ],
)
def test_limits(limits: Limits, source: str, target: str, kept: bool) -> None:
    assert limits.keep(source, target) == limits.keep(target, source) == kept


def test_each_pair_once() -> None:
    rows = [("a", "b"), ("b", "a"), ("a", "b"), ("a b", ""), ("a", "b c"), ("b", "a")]
    assert list(unique(rows)) == [("a", "b"), ("b", "a"), ("a b", ""), ("a", "b c")]


@pytest.mark.parametrize(("sample", "count"), [(0, 10), (3, 3), (5, 5), (10, 10), (99, 10)])
def test_a_sample_is_spread_evenly(tmp_path: Path, sample: int, count: int) -> None:
    for name, begin in (("a", 0), ("b", 5)):
        (tmp_path / name).write_text("".join(f"{number}\n" for number in range(begin, begin + 5)))
    found = [int(line) for line in evenly([tmp_path / "a", tmp_path / "b"], sample)]
    assert len(found) == count and found == sorted(found)
    gaps = [after - before for before, after in zip(found, found[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1
