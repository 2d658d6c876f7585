"""Images and their classes: an archive of scripts/data/glyphs.py, or a folder ROOT/SPLIT/CLASS/*.png."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mhe_fairseq.errors import MHEError
from scripts.common.naming import first_of

#: Files of a folder that are images.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

#: Classes and files named in a line.
_NAMED = 10


@dataclass
class Batch:
    """Images that were read.

    Attributes:
        images: (N, C, S, S) uint8.
        labels: (N,) long.
        unreadable: files that are no images; they are not among the N.
    """

    images: Tensor
    labels: Tensor
    unreadable: list[str]


class Split(Dataset):  # type: ignore[type-arg]
    """Images of one split, read a batch at a time.

    Attributes:
        classes: names of the classes that labels count.
        labels: (N,) long.
        channels, size: of an image.
    """

    classes: list[str]
    labels: Tensor
    channels: int
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, places: list[int]) -> Batch:
        raise NotImplementedError

    def keep(self, places: Tensor, labels: Tensor, classes: list[str]) -> None:
        """Have some of the images only, with other labels. Shape: (M,) long, (M,) long."""
        self.labels, self.classes = labels, classes


class Archive(Split):
    """``images`` (N, S, S) uint8, ``labels`` (N,) and ``classes`` in one file.

    Raises:
        MHEError: the file is damaged or has something else in it.
    """

    channels = 1

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path) as file:
                images, labels, classes = (file[name] for name in ("images", "labels", "classes"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise MHEError(
                f"{path} is not an archive of images, labels and classes ({error}); write it with "
                "scripts/data/glyphs.py"
            ) from None
        fits = images.ndim == 3 and images.dtype == np.uint8 and images.shape[1] == images.shape[2]
        if not fits or labels.shape != images.shape[:1]:
            raise MHEError(
                f"{path} has images {images.dtype} {images.shape} and labels {labels.shape}; they should be "
                "uint8 (N, S, S) and (N,)"
            )
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels).long()
        self.classes = [str(each) for each in classes]
        self.size = images.shape[1]

    def __getitems__(self, places: list[int]) -> Batch:
        return Batch(self.images[places].unsqueeze(1), self.labels[places], [])

    def keep(self, places: Tensor, labels: Tensor, classes: list[str]) -> None:
        super().keep(places, labels, classes)
        self.images = self.images[places]


class Folder(Split):
    """FOLDER/CLASS/*.png, decoded when they are asked for: the shorter side becomes S, the middle is kept.

    Raises:
        MHEError: no classes, or Pillow is not installed.
    """

    channels = 3

    def __init__(self, folder: Path, size: int) -> None:
        try:
            import PIL.Image  # noqa: F401
        except ImportError:
            raise MHEError(
                "Pillow is not installed; install it with: pip install -c constraints.txt -e '.[images]'"
            ) from None
        found = {each.name: _images_in(each) for each in sorted(folder.iterdir()) if each.is_dir()}
        empty = [name for name, files in found.items() if not files]
        say(f"{folder}: classes without an image, left out", empty)
        self.classes = [name for name, files in found.items() if files]
        if not self.classes:
            raise MHEError(
                f"folder {folder} has no classes; it should have a folder for each, with its images: "
                f"{folder}/CLASS/*.png"
            )
        self.files = [file for name in self.classes for file in found[name]]
        counts = torch.tensor([len(found[name]) for name in self.classes])
        self.labels = torch.arange(len(self.classes)).repeat_interleave(counts)
        self.size = size

    def __getitems__(self, places: list[int]) -> Batch:
        images, labels, unreadable = [], [], []
        for place in places:
            pixels = self._read(self.files[place])
            if pixels is None:
                unreadable.append(str(self.files[place]))
            else:
                images.append(torch.from_numpy(pixels))
                labels.append(int(self.labels[place]))
        shape = (0, self.channels, self.size, self.size)
        stacked = torch.stack(images) if images else torch.zeros(shape, dtype=torch.uint8)
        return Batch(stacked, torch.tensor(labels, dtype=torch.long), unreadable)

    def keep(self, places: Tensor, labels: Tensor, classes: list[str]) -> None:
        super().keep(places, labels, classes)
        self.files = [self.files[place] for place in places.tolist()]

    def _read(self, path: Path) -> np.ndarray | None:
        """(3, S, S) uint8, or None."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                factor = self.size / min(image.size)
                wide, high = (max(self.size, round(each * factor)) for each in image.size)
                left, top = (wide - self.size) // 2, (high - self.size) // 2
                square = image.convert("RGB").resize((wide, high), Image.Resampling.BILINEAR)
                square = square.crop((left, top, left + self.size, top + self.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        return np.asarray(square).transpose(2, 0, 1).copy()


def _images_in(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES)


def open_split(root: Path, name: str, size: int) -> Split | None:
    """ROOT/NAME.npz or ROOT/NAME/; None: there is neither.

    Args:
        size: side of a folder's images.

    Raises:
        MHEError: what is there cannot be read.
    """
    if (root / f"{name}.npz").is_file():
        return Archive(root / f"{name}.npz")
    return Folder(root / name, size) if (root / name).is_dir() else None


def needed(root: Path, name: str, size: int) -> Split:
    """``open_split`` of one that has to be there.

    Raises:
        MHEError: it is not, or cannot be read.
    """
    split = open_split(root, name, size)
    if split is None:
        raise MHEError(
            f"{root} has no {name} images; it should have {name}.npz of scripts/data/glyphs.py, or a folder "
            f"{name}/CLASS/*.png"
        )
    return split


def report_few(train: Split, path: Path) -> None:
    """Name the classes that have one image: they are trained on as they are."""
    say(f"{path}: classes with one image", with_one(train))
    if len(train.classes) < 2:
        raise MHEError(f"{path} has {len(train.classes)} class; a classifier needs two at least")


def with_classes_of(split: Split, train: Split, name: str) -> Split:
    """A split with the labels of the training; images of other classes are counted, named and left out.

    Raises:
        MHEError: none is left.
    """
    known = {each: label for label, each in enumerate(train.classes)}
    own = torch.tensor([known.get(each, -1) for each in split.classes], dtype=torch.long)
    other = [each for each in split.classes if each not in known]
    labels = own[split.labels]
    places = (labels >= 0).nonzero().squeeze(1)
    if other:
        say(f"{name}: {len(labels) - len(places):,} images left out, of classes not in training", other)
    if not len(places):
        raise MHEError(
            f"no class of {name} is one of training, whose classes are {train.classes[0]} to "
            f"{train.classes[-1]}; a class has the same name in both"
        )
    split.keep(places, labels[places], train.classes)
    return split


def with_one(split: Split) -> list[str]:
    """The classes that have one image."""
    counts = split.labels.bincount(minlength=len(split.classes))
    return [split.classes[place] for place in (counts == 1).nonzero().flatten().tolist()]


def in_order(count: int, size: int) -> list[list[int]]:
    """Places of batches of so many, one after the other."""
    return [list(range(at, min(at + size, count))) for at in range(0, count, size)]


def class_means(split: Split, workers: int, most: int = 16, size: int = 16) -> Tensor:
    """Mean images of the classes, the mean of all taken off; of the first ``most`` images of each, read by so
    many processes (0: this one).

    Returns:
        (V, C * size * size) fp32. An image that cannot be read counts as none; a class without any is zero.
    """
    order = torch.argsort(split.labels, stable=True)
    counts = split.labels.bincount(minlength=len(split.classes))
    nth = torch.arange(len(order)) - (counts.cumsum(0) - counts)[split.labels[order]]
    shares = (each.tolist() for each in order[nth < most].split(256))
    means = torch.zeros(len(split.classes), split.channels * size**2)
    seen = torch.zeros(len(split.classes))
    for batch in batches(split, shares, workers):
        small = nn.functional.adaptive_avg_pool2d(batch.images.float(), size)
        means.index_add_(0, batch.labels, small.flatten(1))
        seen += batch.labels.bincount(minlength=len(seen))
    means /= seen.clamp(min=1).unsqueeze(1)
    found = seen > 0
    return (means - means[found].mean(0)) * found.unsqueeze(1)


def say(what: str, names: Iterable[str]) -> None:
    """Count and name, if there are any."""
    every = list(names)
    if every:
        print(f"{what}: {len(every):,}: {first_of(every, _NAMED)}", flush=True)


def batches(split: Split, order: Iterable[list[int]], workers: int) -> Iterator[Batch]:
    """Batches of these places, read by so many processes (0: this one)."""
    if isinstance(split, Archive):
        # It is in memory: other processes would only copy it.
        yield from map(split.__getitems__, order)
    else:
        yield from DataLoader(split, batch_sampler=order, num_workers=workers, collate_fn=_as_it_is)


def _as_it_is(batch: Batch) -> Batch:
    return batch
