"""A step of the compact search of larger heads, in half precision, against fairseq's own."""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead
from tests.search.one_step import Step

DIM, VOCAB, BEAM = 64, 4000, 5


def build(name: str, dtype: torch.dtype) -> OutputHead:
    """Logits with a deviation of 8, so that the best of them are large numbers, with few bits behind the
    point."""
    generator = torch.Generator().manual_seed(1)
    embed = torch.nn.Embedding(VOCAB, DIM)
    book = Codebook((60, 70), torch.randperm(4200, generator=generator)[:VOCAB])
    head: OutputHead
    if name == "product":
        head = ProductHead(DIM, book)
    else:
        head = CascadeHead(DIM, book, tied=embed if name == "tied" else None)
    with torch.no_grad():
        for parameter in [*head.parameters(), embed.weight]:
            parameter.normal_(generator=generator)
    embed.to(dtype)
    return head.to(dtype).eval()


@pytest.mark.parametrize("name", ["product", "cascade", "tied"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_no_ties(name: str, dtype: torch.dtype) -> None:
    """Of logits rounded to half precision many are equal, and each search takes some of them."""
    head = build(name, dtype)
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(40 * BEAM, DIM, generator=generator).to(dtype)
    scores = -torch.rand(40, BEAM, 1, generator=generator)
    found = Step([head], [features], BEAM, compact=True).run(scores)
    expected = Step([head], [features], BEAM, compact=False).run(scores)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-5)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])
