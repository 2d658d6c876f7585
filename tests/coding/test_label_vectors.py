"""Vectors of labels from their documents."""

from __future__ import annotations

import numpy as np
import pytest

from mhe_fairseq.coding.assign import cluster_slots
from mhe_fairseq.coding.label_vectors import Lists, label_vectors
from mhe_fairseq.errors import MHEError


def lists(*rows: list[int]) -> Lists:
    numbers = np.array([number for row in rows for number in row], dtype=np.int64)
    return Lists(numbers, np.array([len(row) for row in rows]))


def test_labels_of_the_same_words_are_alike() -> None:
    """Labels 0 and 2 are of words 0 and 1, labels 1 and 3 of words 2 and 3; word 4 is everywhere."""
    documents = lists([0, 1, 4], [1, 0, 0, 4], [2, 3, 4], [3, 2, 4, 4], [0, 1, 4], [2, 3, 4])
    labels = lists([0], [2], [1], [3], [0, 2], [1, 3])
    vectors = label_vectors(documents, labels, tokens=5, count=5, dim=3)
    assert vectors.shape == (5, 3) and not vectors[4].any()
    unit = vectors[:4] / np.linalg.norm(vectors[:4], axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[0, 2] > 0.8 and alike[1, 3] > 0.8
    assert np.abs(alike[[0, 0, 2, 2], [1, 3, 1, 3]]).max() < 0.5
    groups = cluster_slots(vectors[:4], (2, 2)) // 2
    assert groups[0] == groups[2] != groups[1] == groups[3]


def test_a_document_counts_as_much_whatever_its_length() -> None:
    short = label_vectors(lists([0], [1], [2]), lists([0], [0], [1]), 3, 2)
    long = label_vectors(lists([0] * 50, [1], [2]), lists([0], [0], [1]), 3, 2)
    np.testing.assert_allclose(short @ short.T, long @ long.T, atol=1e-5)


def test_bad_lists_are_refused() -> None:
    with pytest.raises(MHEError, match="2 documents and labels of 1"):
        label_vectors(lists([0], [1]), lists([0]), 2, 1)
    with pytest.raises(MHEError, match=r"numbers of 0..1 were expected, got 0..2"):
        label_vectors(lists([0], [2]), lists([0], [0]), 2, 1)
