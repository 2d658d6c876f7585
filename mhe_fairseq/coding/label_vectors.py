"""Vectors of labels from the documents that have them, for clusters of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mhe_fairseq.coding.assign import Floats, Ints, Progress, _no_progress, truncated_svd
from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Lists:
    """Lists of numbers, one behind the other.

    Attributes:
        numbers: (R,) of all lists.
        sizes: (N,) of each.
    """

    numbers: Ints
    sizes: Ints

    def matrix(self, columns: int) -> csr_matrix:
        """How often each list has each number. Shape: -> (N, columns) float32.

        Raises:
            MHEError: a number that is no column.
        """
        from scipy.sparse import csr_matrix

        if len(self.numbers) and not 0 <= self.numbers.min() <= self.numbers.max() < columns:
            raise MHEError(
                f"numbers of 0..{columns - 1} were expected, got {self.numbers.min()}..{self.numbers.max()}"
            )
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        ones = np.ones(len(self.numbers), dtype=np.float32)
        found = csr_matrix((ones, self.numbers, starts), shape=(len(self.sizes), columns))
        found.sum_duplicates()
        return found


def label_vectors(
    documents: Lists,
    labels: Lists,
    tokens: int,
    count: int,
    dim: int = 128,
    seed: int = 1,
    progress: Progress = _no_progress,
) -> Floats:
    """A vector for each label: the mean of its documents by TF-IDF, in the first ``dim`` directions.

    Documents and means have length one. Memory: 8 bytes for each different (label, token) pair of the
    documents, and V x dim numbers.

    Args:
        documents: tokens of each of N documents.
        labels: labels of each of them.
        tokens: size of the tokens' dictionary.
        count: V.
        dim: width of the vectors.
        seed: of the randomised SVD.
        progress: told about stage "SVD".

    Returns:
        (V, dim) float32; zeros for labels without documents.

    Raises:
        MHEError: lists of different numbers of documents, or with numbers that are not in the dictionaries.
    """
    if len(documents.sizes) != len(labels.sizes):
        raise MHEError(f"{len(documents.sizes)} documents and labels of {len(labels.sizes)} were given")
    text = documents.matrix(tokens)
    of_token = np.bincount(text.indices, minlength=tokens)
    rarity = np.log(len(labels.sizes) / np.maximum(of_token, 1)).astype(np.float32)
    text.data = (1 + np.log(text.data)) * rarity[text.indices]
    means = (labels.matrix(count).T @ _unit(text)).tocsr()
    return truncated_svd(_unit(means), dim, seed, progress)


def _unit(rows: csr_matrix) -> csr_matrix:
    """Rows of length one, those of zeros as they are."""
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    rows.data /= np.repeat(np.maximum(norms, 1e-12), np.diff(rows.indptr)).astype(np.float32)
    return rows
