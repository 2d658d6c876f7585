"""scripts/data/glyphs.py: images of characters from font files, what is missing, what is refused."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from scripts.data.glyphs import Font, main

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SANS, BOLD, SERIF = (str(FONTS / f"DejaVu{each}.ttf") for each in ("Sans", "Sans-Bold", "Serif"))
MONO, OBLIQUE = (str(FONTS / f"DejaVuSansMono{each}.ttf") for each in ("", "-Oblique"))
#: Of Computer Modern: it has no Cyrillic letters.
LATIN = str(FONTS / "cmr10.ttf")


def drawn_by(path: str | Path, character: str) -> np.ndarray:
    pixels = Font(Path(path), 16).draw(character)
    assert pixels is not None
    return pixels


def arguments(out: Path, *more: str, fonts: tuple[str, ...] = (SANS, BOLD, SERIF)) -> list[str]:
    splits = ["--fonts", *fonts, "--valid-fonts", MONO, "--test-fonts", OBLIQUE, SERIF.replace(".", "-Bold.")]
    return [*splits, "--out", str(out), "--from", "0430-044F", "--size", "16", *more]


def test_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(arguments(out, "--count", "20", "--unseen", "5")) == 0
    splits = {split: np.load(out / f"{split}.npz") for split in ("train", "valid", "test", "unseen")}
    assert [len(splits[split]["images"]) for split in splits] == [60, 20, 40, 10]
    assert "train: 60 images of 20 characters, 3 fonts" in capsys.readouterr().out
    classes = splits["train"]["classes"].tolist()
    assert classes == splits["test"]["classes"].tolist() == sorted(classes)
    assert not set(classes) & set(splits["unseen"]["classes"].tolist())
    images, labels = splits["train"]["images"], splits["train"]["labels"]
    assert images.dtype == np.uint8 and images.shape[1:] == (16, 16)
    assert np.bincount(labels).tolist() == [3] * 20
    # What the fonts draw, class by class.
    drawn = {name: drawn_by(name, chr(int(classes[7][2:], 16))) for name in (SANS, BOLD, SERIF)}
    for pixels in drawn.values():
        assert any(np.array_equal(pixels, each) for each in images[labels == 7])
    # Again: the same, and not with other settings.
    before = (out / "train.npz").read_bytes()
    assert main(arguments(out, "--count", "20", "--unseen", "5")) == 0
    assert (out / "train.npz").read_bytes() == before
    assert main(arguments(out, "--count", "9")) == 1
    assert "prepared with other characters, unseen" in capsys.readouterr().err
    assert (out / "train.npz").read_bytes() == before


def test_folders_of_pngs(tmp_path: Path) -> None:
    assert main(arguments(tmp_path / "out", "--count", "4", "--png")) == 0
    files = sorted((tmp_path / "out" / "train").rglob("*.png"))
    assert len(files) == 12 and {each.stem for each in files} == {
        Path(each).stem for each in (SANS, BOLD, SERIF)
    }
    code = files[0].parent.name
    with Image.open(files[0]) as image:
        assert image.size == (16, 16)
        assert np.array_equal(
            np.asarray(image), drawn_by(FONTS / f"{files[0].stem}.ttf", chr(int(code[2:], 16)))
        )


def test_ink_is_in_the_middle() -> None:
    pixels = Font(Path(SANS), 32).draw("о")
    assert pixels is not None
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    for places in (rows, columns):
        assert abs((places[0] + places[-1]) / 2 - 15.5) <= 1
    # Larger than the square: what fits.
    large = Font(Path(SANS), 8).draw("Ǆ")
    assert large is not None and large.shape == (8, 8) and large.any()
    assert Font(Path(SANS), 8).draw(" ") is None


def test_missing_glyphs_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of characters that were asked for, those that too few fonts have are left out."""
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("abcжd ж\n", encoding="utf-8")
    args = arguments(tmp_path / "out", "--characters", str(wanted), fonts=(SANS, LATIN))
    assert main(args) == 0
    said = capsys.readouterr().out
    assert f"{LATIN}: no glyph for 1 of 5: ж" in said
    assert "left out, fewer than 2 fonts of --fonts have it: 1: ж" in said
    assert np.load(tmp_path / "out" / "train.npz")["classes"].tolist() == [f"U+006{each}" for each in "1234"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--count", "99"], "--count 99 and --unseen 0 ask for more than the 32 characters that there are"),
        (["--count", "2", "--unseen", "31"], "ask for more than the 32 characters"),
        (["--valid-fonts", SANS], "is one of train and of valid; a font is in one of them only"),
        (["--from", "0430"], "--from is two code points such as 4E00-9FFF; got '0430'"),
        (["--from", "044F-0430"], "--from is a range of code points"),
        (["--size", "4"], "--size is a side in pixels, at least 8; got 4"),
        (["--count", "-1"], "numbers of characters; got -1 and 0"),
        (["--fonts", SANS, LATIN], "of 0 characters 0 can be a class, and a classifier needs two"),
        (["--fonts", SANS, __file__], r"test_glyphs.py cannot be read"),
        (["--fonts", SANS, "no-such.ttf"], "font no-such.ttf cannot be read"),
        (["--test-fonts", OBLIQUE, "--unseen", "3"], "--unseen needs two --test-fonts at least"),
        (["--characters", "no-such.txt"], "there is no file no-such.txt"),
        (["--characters", SANS], "is not UTF-8 text"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    out = tmp_path / "out"
    assert main(arguments(out, *more)) == 1
    said = capsys.readouterr().err
    assert said.startswith("glyphs.py: error: ") and message in said and said.count("\n") == 1
    assert not out.exists()
