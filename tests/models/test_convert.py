"""A model put together with another head."""

from __future__ import annotations

import torch

from mhe_fairseq.coding import Codebook
from mhe_fairseq.models.convert import rows_by_slot


def test_rows_lie_in_the_order_of_slots() -> None:
    table = torch.arange(6.0).view(3, 2) + 1
    rows = rows_by_slot(table, Codebook((2, 2), torch.tensor([3, 0, 1])))
    assert rows.tolist() == [[3.0, 4.0], [5.0, 6.0], [0.0, 0.0], [1.0, 2.0]]
