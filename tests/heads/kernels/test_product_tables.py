"""Tables of a codebook for the kernels of a product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.kernels.product_tables import MOST_PATHS, MOST_SETS, fits, make_tables
from mhe_fairseq.heads.product.lattice import Lattice
from tests.heads.oracle import codebooks

CPU = torch.device("cpu")


@given(book=codebooks(max_vocab=120), seed=st.integers(0, 9))
def test_paths_cover_every_token_once_and_no_hole(book: Codebook, seed: int) -> None:
    lattice = Lattice(book)
    if lattice.full or not fits(lattice, 1):
        return
    tables = make_tables(lattice, book, CPU)
    covered = torch.zeros(book.lengths)
    for path in tables.paths.tolist():
        part = torch.ones(())
        for number, length in zip(path, book.lengths, strict=True):
            part = part.unsqueeze(-1) * tables.members[number, :length].float()
        covered += part
    assert torch.equal(covered.flatten(), (book.token_of_slot >= 0).float())
    for column, path in enumerate(tables.paths.tolist()):
        assert tables.incidence[:, column].nonzero().flatten().tolist() == sorted(path)


@given(book=codebooks(max_vocab=120))
def test_sets_lie_by_level(book: Codebook) -> None:
    lattice = Lattice(book)
    tables = make_tables(lattice, book, CPU)
    heads = len(book.lengths)
    assert tables.sets == len(tables.members)
    assert tables.info[:heads, 0].tolist() == list(range(heads))
    for level, length in enumerate(book.lengths):
        begin, end = tables.info[level, 4], tables.info[level + 1, 4]
        assert tables.info[begin:end, 0].eq(level).all()
        assert tables.members[level].sum() == length == tables.info[level, 1]
    assert tables.info[heads, 4] == tables.sets
    digits = book.digits(torch.arange(len(book)))
    for level, (_, length, offset, divisor, _) in enumerate(tables.info[:heads].tolist()):
        assert torch.equal(book.slots // divisor % length, digits[:, level])
        mean = tables.mean[offset : offset + length]
        counts = torch.bincount(digits[:, level], minlength=length)
        torch.testing.assert_close(mean, counts / len(book))


@pytest.mark.parametrize("vocab", [32_764, 262_140, 100_003])
@pytest.mark.parametrize("heads", [2, 3])
def test_planned_lengths_fit(vocab: int, heads: int) -> None:
    from mhe_fairseq.coding import plan_lengths

    assert fits(Lattice(Codebook(plan_lengths(vocab, heads), vocab_size=vocab)), 64)


def test_holes_anywhere_do_not_fit() -> None:
    order = torch.randperm(400 * 20, generator=torch.Generator().manual_seed(1))
    lattice = Lattice(Codebook((400, 20), order[:4000]))
    assert len(lattice.sets) > MOST_SETS or len(lattice.levels[0][0]) > MOST_PATHS
    assert not fits(lattice, 1)
