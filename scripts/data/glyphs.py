#!/usr/bin/env python3
"""Make images of characters from font files: a data set of many classes without a download.

    python scripts/data/glyphs.py --fonts /usr/share/fonts/truetype/arphic/u*.ttc ... \\
        --test-fonts /usr/share/fonts/truetype/vlgothic/VL-Gothic-Regular.ttf ... --out glyphs

A class is a character, and an example of it one font's image: ink 255 on 0, in the middle of a square. The
fonts of --valid-fonts and --test-fonts are none of --fonts; give whole families, as two weights of one are
much alike. With --unseen N, N characters are kept from training, validation and test: their images, of the
test fonts, are a split of their own, for verification.

Characters are those of --from that all fonts have; with --characters, those of a text file. Glyphs that a
font does not have are counted and named, and so are characters left out: those with fewer than two images
to train on, or none to test with.

OUT/{train,valid,test,unseen}.npz hold ``images`` (N, S, S) uint8, ``labels`` (N,) int32 and ``classes``,
their names. With --png images are OUT/SPLIT/CLASS/FONT.png, the layout of torchvision's ImageFolder.
Classes have the names of code points, as U+4E00, and are in order of them.
"""

from __future__ import annotations

import argparse
import io
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.files import PrepareError, keep_settings, run_script, write_whole  # noqa: E402
from scripts.common.naming import first_of  # noqa: E402
from scripts.common.progress import watched  # noqa: E402
from scripts.data.arguments import preparing  # noqa: E402

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

#: Characters and fonts named in a line of the report.
naming = partial(first_of, most=12, between=" ")

#: Images of a class to train on, at least.
_FEWEST = 2

#: Part of the square that a full character fills.
_FILLS = 0.85


class Font:
    """A font file that draws single characters.

    Args:
        path: TrueType or OpenType; of a collection the first face.
        size: side of the images.

    Raises:
        PrepareError: no font, or Pillow is not installed.
    """

    def __init__(self, path: Path, size: int) -> None:
        try:
            from PIL import ImageFont
        except ImportError:
            raise PrepareError(
                "Pillow is not installed; install it with: pip install -c constraints.txt -e '.[images]'"
            ) from None
        self.path = path
        self.size = size
        try:
            self._font: FreeTypeFont = ImageFont.truetype(str(path), round(size * _FILLS))
        except OSError as error:
            raise PrepareError(
                f"font {path} cannot be read ({error}); give TrueType or OpenType files"
            ) from None
        # What is drawn for a character that no font has.
        self._nothing = {self._ink(each)[1] for each in ("\U0010fffd", "\ufffe")}

    @property
    def name(self) -> str:
        return self.path.stem

    def draw(self, character: str) -> np.ndarray | None:
        """The character in the middle of a square; None if the font has no glyph for it, or an empty one.

        Shape: -> (S, S) uint8.
        """
        (width, height), ink = self._ink(character)
        if ink in self._nothing or not any(ink):
            return None
        pixels = np.frombuffer(ink, dtype=np.uint8).reshape(height, width)
        # The part of a large one that fits.
        down, right = ((max(0, each - self.size)) // 2 for each in (height, width))
        pixels = pixels[down : down + self.size, right : right + self.size]
        square = np.zeros((self.size, self.size), dtype=np.uint8)
        top, left = ((self.size - each) // 2 for each in pixels.shape)
        square[top : top + len(pixels), left : left + pixels.shape[1]] = pixels
        return square

    def _ink(self, character: str) -> tuple[tuple[int, int], bytes]:
        mask = self._font.getmask(character, mode="L")
        return mask.size, bytes(mask)


def parse_range(text: str) -> range:
    """4E00-9FFF -> its code points, both ends too."""
    try:
        first, last = (int(each, 16) for each in text.split("-"))
    except ValueError:
        raise PrepareError(f"--from is two code points such as 4E00-9FFF; got {text!r}") from None
    if not 0 <= first <= last <= sys.maxunicode:
        raise PrepareError(f"--from is a range of code points up to 10FFFF; got {text!r}")
    return range(first, last + 1)


def asked_characters(path: Path) -> list[str]:
    """Those of a text file, each once, in order of code points."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PrepareError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise PrepareError(f"{path} is not UTF-8 text; it should have the characters to draw") from None
    found = sorted({each for each in text if not each.isspace()})
    if not found:
        raise PrepareError(f"{path} has no characters; write those to draw into it")
    return found


class Glyphs:
    """Every font's image of every character, where it has one.

    Args:
        fonts: split -> fonts.
        characters: to draw.
    """

    def __init__(self, fonts: dict[str, list[Font]], characters: list[str]) -> None:
        self.fonts = fonts
        self.images: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        for split, own in fonts.items():
            for number, font in enumerate(own):
                drawn = self.images[split, number] = {}
                for character in watched(characters, f"{split}: {font.name}", len(characters)):
                    pixels = font.draw(character)
                    if pixels is not None:
                        drawn[character] = pixels

    def in_all(self, characters: list[str]) -> list[str]:
        return [each for each in characters if all(each in drawn for drawn in self.images.values())]

    def report_missing(self, characters: list[str]) -> None:
        """Say what each font has not."""
        for (split, number), drawn in self.images.items():
            missing = [each for each in characters if each not in drawn]
            if missing:
                font = self.fonts[split][number].path
                print(f"{font}: no glyph for {len(missing):,} of {len(characters):,}: {naming(missing)}")

    def count(self, split: str, character: str) -> int:
        return sum(character in self.images[split, number] for number in range(len(self.fonts[split])))

    def of(self, split: str, characters: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Images, labels, and the fonts they are of."""
        found = [
            (label, own.path.stem, self.images[split, number][character])
            for label, character in enumerate(characters)
            for number, own in enumerate(self.fonts[split])
            if character in self.images[split, number]
        ]
        labels = np.array([label for label, _, _ in found], dtype=np.int32)
        images = np.stack([pixels for _, _, pixels in found])
        return images, labels, [name for _, name, _ in found]


def usable(glyphs: Glyphs, characters: list[str]) -> list[str]:
    """Those with images enough; the others are named.

    Raises:
        PrepareError: there are none.
    """
    few = [each for each in characters if glyphs.count("train", each) < _FEWEST]
    untested = [
        each
        for each in characters
        if each not in few and not all(glyphs.count(split, each) for split in glyphs.fonts)
    ]
    if few:
        print(f"left out, fewer than {_FEWEST} fonts of --fonts have it: {len(few):,}: {naming(few)}")
    if untested:
        print(
            f"left out, no font of --valid-fonts or of --test-fonts has it: {len(untested):,}: "
            f"{naming(untested)}"
        )
    left = sorted(set(characters) - set(few) - set(untested))
    if len(left) < 2:
        raise PrepareError(
            f"of {len(characters):,} characters {len(left)} can be a class, and a classifier needs two; a "
            f"class is a character that {_FEWEST} of --fonts have, and one of --valid-fonts and --test-fonts"
        )
    return left


def write_split(
    out: Path, split: str, images: np.ndarray, labels: np.ndarray, classes: list[str], fonts: list[str],
    png: bool,
) -> None:  # fmt: skip
    if png:
        from PIL import Image

        for pixels, label, font in zip(images, labels, fonts, strict=True):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            write_whole(out / split / classes[label] / f"{font}.png", [file.getvalue()])
    else:
        archive = io.BytesIO()
        np.savez_compressed(archive, images=images, labels=labels, classes=np.array(classes))
        write_whole(out / f"{split}.npz", [archive.getvalue()])
    print(f"{split}: {len(images):,} images of {len(classes):,} characters, {len(set(fonts))} fonts")


def run(args: argparse.Namespace) -> None:
    groups = {"train": args.fonts, "valid": args.valid_fonts, "test": args.test_fonts}
    groups = {split: sorted(set(paths)) for split, paths in groups.items() if paths}
    check(args, groups)
    fonts = {split: [Font(path, args.size) for path in paths] for split, paths in groups.items()}
    asked = (
        [chr(code) for code in parse_range(args.range)]
        if args.characters is None
        else asked_characters(args.characters)
    )
    glyphs = Glyphs(fonts, asked)
    glyphs.report_missing(asked)
    characters = usable(glyphs, glyphs.in_all(asked) if args.characters is None else asked)
    wanted = args.count + args.unseen if args.count else len(characters)
    if len(characters) < wanted or args.unseen > wanted - 2:
        raise PrepareError(
            f"--count {args.count or len(characters)} and --unseen {args.unseen} ask for more than the "
            f"{len(characters):,} characters that there are; ask for fewer, or leave out the fonts that have "
            "the fewest"
        )
    # Some of every stroke order and radical, not the first ones.
    chosen = np.random.default_rng(args.seed).permutation(len(characters))[:wanted]
    unseen = sorted(characters[place] for place in chosen[: args.unseen])
    seen = sorted(characters[place] for place in chosen[args.unseen :])
    settings = {
        "fonts": {split: [str(path) for path in paths] for split, paths in groups.items()},
        "characters": len(seen), "unseen": len(unseen), "size": args.size, "seed": args.seed, "png": args.png,
    }  # fmt: skip
    keep_settings(args.out / "settings.json", settings)
    for split in fonts:
        images, labels, names = glyphs.of(split, seen)
        write_split(args.out, split, images, labels, [name_of(each) for each in seen], names, args.png)
    if unseen:
        images, labels, names = glyphs.of("test", unseen)
        write_split(args.out, "unseen", images, labels, [name_of(each) for each in unseen], names, args.png)


def check(args: argparse.Namespace, groups: dict[str, list[Path]]) -> None:
    """Raises:
    PrepareError: arguments that cannot be.
    """
    where: dict[Path, str] = {}
    for split, paths in groups.items():
        for path in paths:
            other = where.setdefault(path.resolve(), split)
            if other != split:
                raise PrepareError(
                    f"font {path} is one of {other} and of {split}; a font is in one of them only"
                )
    if args.size < 8:
        raise PrepareError(f"--size is a side in pixels, at least 8; got {args.size}")
    if args.count < 0 or args.unseen < 0:
        raise PrepareError(
            f"--count and --unseen are numbers of characters; got {args.count} and {args.unseen}"
        )
    if args.unseen and len(args.test_fonts) < 2:
        raise PrepareError(
            "--unseen needs two --test-fonts at least: a pair is of one character in two fonts"
        )


def name_of(character: str) -> str:
    return f"U+{ord(character):04X}"


def main(argv: list[str] | None = None) -> int:
    parser = preparing(__doc__)
    add = parser.add_argument
    add("--fonts", type=Path, nargs="+", required=True, help="font files to train on")
    add("--valid-fonts", type=Path, nargs="+", default=[], help="font files to validate with (default: none)")
    add("--test-fonts", type=Path, nargs="+", required=True, help="font files to test with")
    add("--from", dest="range", default="4E00-9FFF", help="code points, hexadecimal (default: %(default)s)")
    add("--characters", type=Path, help="file of characters to draw, in place of --from")
    add("--count", type=int, default=0, help="classes, chosen at random by --seed (default: all)")
    add("--unseen", type=int, default=0, help="characters kept for verification (default: %(default)s)")
    add("--size", type=int, default=32, help="side of the images in pixels (default: %(default)s)")
    add("--seed", type=int, default=1, help="of the choice of characters (default: %(default)s)")
    add("--png", action="store_true", help="one file an image, in folders")
    args = parser.parse_args(argv)
    return run_script("glyphs.py", args.out, lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
