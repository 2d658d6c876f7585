"""Documents with labels, in the formats of extreme multi-label text.

- One line a document, ``label,label<TAB>text``, in ``{train,valid,test}.tsv``; labels may be separated by
  blanks instead, and a label with commas in it stands in quotation marks.
- A file of labels and one of texts, line by line: ``trn_X_Y.txt`` and ``tst_X_Y.txt`` of the extreme
  classification repository (a first line of two numbers, then ``label:1 label:1``, names in ``Y.txt``), or
  labels as they are in ``Y.trn.txt`` or ``train_labels.txt``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from scripts.common.files import PrepareError, read_lines

#: Folders and names of files of the second kind; in each list the first that is there is taken.
_LABELS = {
    "train": ("trn_X_Y.txt", "Y.trn.txt", "train_labels.txt"),
    "valid": ("val_X_Y.txt", "Y.val.txt", "valid_labels.txt"),
    "test": ("tst_X_Y.txt", "Y.tst.txt", "test_labels.txt"),
}
_TEXTS = {
    split: tuple(
        name.format(long=split, short=short)
        for name in (
            "{short}_X.txt", "{long}.raw.txt", "raw_data/{long}.raw.txt", "{long}_raw_texts.txt",
            "{long}_texts.txt", "X.{short}.txt",
        )
    )
    for split, short in (("train", "trn"), ("valid", "val"), ("test", "tst"))
}  # fmt: skip
_NAMES = ("Y.txt", "label.raw.txt", "raw_data/label.raw.txt")


@dataclass(frozen=True)
class Document:
    """A document and where it is.

    Attributes:
        line: of its file, from 1.
        labels: in their order, none twice.
        text: "" where there is none.
        repeated: labels that stood there more than once.
    """

    line: int
    labels: tuple[str, ...]
    text: str
    repeated: int = 0


@dataclass(frozen=True)
class Source:
    """One set of documents.

    Attributes:
        labels: file of the labels.
        texts: file of the texts; None: they are in the same.
        separator: between labels, "," or " "; "" for the repository's sparse lines.
        names: of labels that are given by numbers, or None.
    """

    labels: Path
    texts: Path | None
    separator: str
    names: tuple[str, ...] | None = None

    def documents(self) -> Iterator[Document]:
        """All of them.

        Raises:
            PrepareError: a file that cannot be read, a line that is none of its format, or files of different
                lengths.
        """
        if self.texts is None:
            # Not stripped: a line begins with its tab where there is no label.
            for number, line in enumerate(read_lines(self.labels, strip=False), start=1):
                yield self._of_line(number, line)
            return
        lines = read_lines(self.labels, blank=True)
        if self.separator == "":
            next(lines)
        texts = read_lines(self.texts, blank=True)
        for number, (labels, text) in enumerate(zip_longest(lines, texts), start=1):
            if labels is None or text is None:
                self._check_lengths()
            else:
                yield self._document(number, labels, text)

    def check(self) -> None:
        """Before anything is written.

        Raises:
            PrepareError: two files of different lengths.
        """
        if self.texts is not None:
            self._check_lengths()

    def _check_lengths(self) -> None:
        assert self.texts is not None
        header = 1 if self.separator == "" else 0
        labels = sum(1 for _ in read_lines(self.labels, blank=True)) - header
        texts = sum(1 for _ in read_lines(self.texts, blank=True))
        if labels != texts:
            raise PrepareError(
                f"{self.labels} has labels of {labels} documents and {self.texts} has {texts} texts; line by "
                "line they belong together"
            )

    def _of_line(self, number: int, line: str) -> Document:
        labels, tab, text = line.partition("\t")
        if not tab:
            raise PrepareError(
                f"line {number} of {self.labels} has no tab; labels, a tab and a text were expected"
            )
        return self._document(number, labels, text)

    def _document(self, number: int, labels: str, text: str) -> Document:
        found = self._labels(number, labels)
        different = tuple(dict.fromkeys(found))
        return Document(number, different, text.strip(), len(found) - len(different))

    def _labels(self, number: int, field: str) -> list[str]:
        if self.separator == "":
            return [self._name(number, each.partition(":")[0]) for each in field.split()]
        if self.separator == " ":
            return field.split()
        if field.count('"') % 2:
            raise PrepareError(
                f"line {number} of {self.labels} has a quotation mark without its other; a label with commas "
                'is written "like, this"'
            )
        (row,) = csv.reader([field], skipinitialspace=True) if field.strip() else ([],)
        return [label.strip() for label in row if label.strip()]

    def _name(self, number: int, label: str) -> str:
        if not label.isdecimal():
            raise PrepareError(
                f"line {number + 1} of {self.labels} has '{label}'; numbers of labels, as in 17:1, were "
                "expected"
            )
        if self.names is None:
            return label
        if int(label) >= len(self.names):
            raise PrepareError(
                f"line {number + 1} of {self.labels} has label {label}, and there are names of "
                f"{len(self.names)}"
            )
        return self.names[int(label)]


def find_sources(folder: Path, separator: str | None) -> dict[str, Source]:
    """The sets in a folder: "train", "test" and, where there is one, "valid".

    Args:
        folder: to look in.
        separator: "comma" or "blank"; None: commas, if there is one in the labels of the training set.

    Raises:
        PrepareError: a set is missing, or half of it.
    """
    if not folder.is_dir():
        raise PrepareError(f"--source {folder} is not a folder")
    found = {}
    for split in ("train", "valid", "test"):
        tsv = _first(folder, (f"{split}.tsv", f"{split}.tsv.xz"))
        if tsv is not None:
            found[split] = Source(tsv, None, " ")
            continue
        labels, texts = _first(folder, _LABELS[split]), _first(folder, _TEXTS[split])
        if labels is not None and texts is not None:
            sparse = labels.name.endswith("_X_Y.txt")
            found[split] = Source(labels, texts, "" if sparse else " ", _names(folder) if sparse else None)
        elif labels is not None or texts is not None:
            here, names = labels or texts, _TEXTS[split] if texts is None else _LABELS[split]
            raise PrepareError(f"{here} is one of two files, and the other is missing: {', '.join(names)}")
        elif split != "valid":
            raise PrepareError(
                f"there is no {split} set in {folder}: neither {split}.tsv[.xz], nor {_LABELS[split][0]} "
                f"with {_TEXTS[split][0]}"
            )
    word = separator or ("comma" if _has_comma(found["train"]) else "blank")
    char = {"comma": ",", "blank": " "}[word]
    for split, source in found.items():
        if source.separator:
            found[split] = Source(source.labels, source.texts, char)
    return found


def _has_comma(source: Source) -> bool:
    if not source.separator:
        return False
    return any("," in line.partition("\t")[0] for line in read_lines(source.labels, blank=True))


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    paths = (folder / each for name in names for each in (name, name + ".xz"))
    return next((path for path in paths if path.is_file()), None)


def _names(folder: Path) -> tuple[str, ...] | None:
    """Raises:
    PrepareError: two labels of the same name.
    """
    path = _first(folder, _NAMES)
    if path is None:
        return None
    names = tuple(read_lines(path))
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise PrepareError(f"{path} has the label '{twice}' twice; names of labels must differ")
    return names
