"""Products of few rows, whole or in parts, are products."""

from __future__ import annotations

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.heads import few_rows


@given(
    count=st.integers(1, 12),
    length=st.integers(1, 140),
    dim=st.integers(1, 20),
    large=st.sampled_from([1, 2**16]),
    seed=st.integers(0, 99),
)
def test_products_of_few_rows(count: int, length: int, dim: int, large: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    rows = torch.randn(length, dim, generator=generator, dtype=torch.float64)
    # As in use, a part of a larger tensor.
    d = torch.randn(count + 2, length, generator=generator, dtype=torch.float64)[1:-1]
    with mock.patch.object(few_rows, "_LARGE", large):
        out = torch.empty(count + 1, length, dtype=torch.float64)[1:]
        few_rows.product_with_rows(x, rows, out)
        torch.testing.assert_close(out, x @ rows.T)
        out = torch.empty(count + 1, dim, dtype=torch.float64)[1:]
        few_rows.product(d, rows, out)
        torch.testing.assert_close(out, d @ rows)
        out = torch.empty(2, length, dim, dtype=torch.float64)[1]
        few_rows.transposed_product(d, x, out)
        torch.testing.assert_close(out, d.T @ x)
