"""Labels of rows, any number of which may be right, as heads take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mhe_fairseq.errors import MHEError

#: The labels of every row: N lists, or (N, M) long padded with -1.
Labels = Sequence[Sequence[int]] | Tensor


def padded_labels(labels: Labels, count: int, vocab_size: int) -> Tensor:
    """As a matrix.

    Args:
        labels: of every row.
        count: N.
        vocab_size: V.

    Returns:
        (N, M) long, below 0 where there is no label.

    Raises:
        MHEError: another number of rows, or a label outside 0..V-1.
    """
    if not isinstance(labels, Tensor):
        rows = [torch.as_tensor(row, dtype=torch.long) for row in labels]
        padded = torch.full((len(rows), max((len(row) for row in rows), default=0)), -1)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        labels = padded
    if labels.dim() != 2 or len(labels) != count:
        raise MHEError(
            f"labels are a list for every one of the {count} rows of features, or a matrix padded with -1; "
            f"got shape {tuple(labels.shape)}"
        )
    if labels.numel():
        low, high = torch.stack(labels.aminmax()).tolist()
        if not -1 <= low <= high < vocab_size:
            raise MHEError(f"labels must be 0..{vocab_size - 1} (-1 pads a row), got {low} .. {high}")
    return labels


def label_pairs(labels: Labels, features: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Pairs of a row and a label of it, in the order of rows.

    Shape: labels of N rows, features (N, d) -> (R,) long rows and (R,) long labels, on the features' device.

    Raises:
        MHEError: as ``padded_labels``.
    """
    padded = padded_labels(labels, len(features), vocab_size).to(features.device)
    row, place = (padded >= 0).nonzero(as_tuple=True)
    return row, padded[row, place]
