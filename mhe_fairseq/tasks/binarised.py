"""Text that fairseq-preprocess wrote, read in large pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mhe_fairseq.coding.assign import CHUNK, Ints
from mhe_fairseq.errors import MHEError


class BinarisedText:
    """Training text as arrays of at most ``CHUNK`` tokens; may be read more than once.

    Args:
        prefixes: paths without .bin and .idx.

    Raises:
        MHEError: a file that is missing, damaged or not an indexed dataset.
    """

    def __init__(self, prefixes: list[str]) -> None:
        self._parts = [(prefix, self._open(prefix)) for prefix in prefixes]
        self.tokens = sum(int(np.sum(part.sizes)) for _, part in self._parts)
        self.sentences = sum(len(part) for _, part in self._parts)
        #: (sentences,) tokens of each, with its end.
        self.sizes = np.concatenate([np.asarray(part.sizes, dtype=np.int64) for _, part in self._parts])

    def __iter__(self) -> Iterator[Ints]:
        from fairseq.data.indexed_dataset import MMapIndexedDataset, data_file_path

        for prefix, part in self._parts:
            if isinstance(part, MMapIndexedDataset):
                # Sentences lie end to end in the file; taking them one by one costs ten times as much.
                stream = np.memmap(data_file_path(prefix), dtype=part._index.dtype, mode="r")
                for start in range(0, len(stream), CHUNK):
                    yield stream[start : start + CHUNK].astype(np.int64)
            else:
                yield from _gather(part)

    @staticmethod
    def _open(prefix: str) -> Any:
        from fairseq.data.data_utils import load_indexed_dataset
        from fairseq.data.indexed_dataset import MMapIndexedDataset, data_file_path, infer_dataset_impl

        wrong = f"{prefix}.idx and {prefix}.bin are not a binarised text"
        again = "write them again with fairseq-preprocess"
        data = Path(data_file_path(prefix))
        if data.is_file() and data.stat().st_size == 0:
            # fairseq cannot map an empty file, and its dataset's destructor complains once more.
            raise MHEError(f"the training text {data} is empty; clusters need text")
        try:
            # A "cached" dataset must be told beforehand what will be read of it; "lazy" reads the same.
            implementation = infer_dataset_impl(prefix)
            part = load_indexed_dataset(
                prefix, dataset_impl="lazy" if implementation == "cached" else implementation
            )
        except Exception as error:  # fairseq asserts, struct and numpy complain, each in its own way
            raise MHEError(f"{wrong} ({type(error).__name__}: {error}); {again}") from error
        if part is None:
            raise MHEError(f"{wrong} (one of the two is missing); {again}")
        if isinstance(part, MMapIndexedDataset):
            size = os.path.getsize(data_file_path(prefix))
            expected = int(np.sum(part.sizes, dtype=np.int64)) * np.dtype(part._index.dtype).itemsize
            if size != expected:
                raise MHEError(
                    f"{prefix}.bin has {size} bytes, its index says {expected}: a copy broken off? {again}"
                )
        return part


def _gather(part: Any) -> Iterator[Ints]:
    """Sentences of any other dataset put together."""
    held: list[Ints] = []
    size = 0
    for index in range(len(part)):
        held.append(part[index].numpy().astype(np.int64))
        size += len(held[-1])
        if size >= CHUNK:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)
