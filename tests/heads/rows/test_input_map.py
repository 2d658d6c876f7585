"""Input embeddings that are a linear map of the output layer's rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, SamplingHead, SoftmaxHead
from mhe_fairseq.heads.rows.input_map import MAP, InputMap, mapped, unmapped
from mhe_fairseq.heads.rows.input_rows import with_rows_of_state

DIM = 3
BOOK = Codebook((3, 4), vocab_size=10)


def heads(embedding: nn.Embedding) -> list[OutputHead]:
    made: list[OutputHead] = [
        CascadeHead(DIM, BOOK, tied=embedding, tied_groups=embedding, rows_in_input=True),
        CascadeHead(DIM, Codebook((2, 2, 3), vocab_size=10), tied=embedding, rows_in_input=True),
        CascadeHead(DIM, BOOK, tied=embedding),
        SamplingHead(DIM, BOOK, groups=1, tied=embedding),
        SoftmaxHead(DIM, BOOK, tied=embedding),
    ]
    for head in made:
        head.map_inputs()
    return made


def test_it_begins_as_the_identity() -> None:
    embedding = nn.Embedding(10, DIM)
    tokens = torch.randint(10, (2, 5))
    for head in heads(embedding):
        rows = head.input_rows(tokens)
        wanted = embedding(tokens) if rows is None else embedding(tokens) + rows
        assert head.is_tied and torch.equal(head.as_input(embedding(tokens), tokens), wanted)


@given(seed=st.integers(0, 99))
def test_it_is_the_same_of_a_model_and_of_what_is_saved(seed: int) -> None:
    torch.manual_seed(seed)
    embedding, tokens = nn.Embedding(10, DIM), torch.randperm(10)
    for head in heads(embedding):
        assert head.input_map is not None
        nn.init.normal_(head.input_map.weight)
        rows = embedding.weight.detach()
        read = head.as_input(rows[tokens], tokens).detach()
        whole = torch.eye(DIM) + head.input_map.weight.detach()
        added = head.input_rows(tokens)
        torch.testing.assert_close(read, rows[tokens] @ whole + (0.0 if added is None else added.detach()))
        state = head.state_dict(prefix="decoder.head.")
        torch.testing.assert_close(with_rows_of_state(rows, state, "decoder.head.")[tokens], read)
        back = unmapped(mapped(rows, state, "decoder.head."), state, "decoder.head.")
        # What rounding costs grows with how near to singular the map is.
        near = 1e-6 * float(torch.linalg.cond(whole)) + 1e-5
        torch.testing.assert_close(back, rows, atol=10 * near, rtol=10 * near)


def test_gradients() -> None:
    made = InputMap(DIM).double()
    nn.init.normal_(made.weight)
    rows = torch.randn(4, DIM, dtype=torch.float64, requires_grad=True)

    def read(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(made, {"weight": weight}, (rows,))

    weight = made.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(read, (weight, rows))


def test_without_a_map_rows_are_what_is_read() -> None:
    embedding = nn.Embedding(10, DIM)
    head = SoftmaxHead(DIM, BOOK, tied=embedding)
    rows = embedding.weight.detach()
    assert torch.equal(head.as_input(rows, torch.arange(10)), rows)
    assert mapped(rows, head.state_dict(), "") is rows and unmapped(rows, head.state_dict(), "") is rows


def test_a_checkpoint_without_a_map_is_of_one_that_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    embedding = nn.Embedding(10, DIM)
    old = CascadeHead(DIM, BOOK, tied=embedding)
    new = heads(embedding)[2]
    assert new.input_map is not None
    nn.init.normal_(new.input_map.weight)
    with caplog.at_level("INFO", logger="mhe_fairseq"):
        new.load_state_dict(old.state_dict())
    assert "tied exactly, and --mhe-tie linear goes on from there" in caplog.text
    assert not new.input_map.weight.any()
    with pytest.raises(MHEError, match="input embeddings are a linear map .*; give --mhe-tie linear"):
        old.load_state_dict(new.state_dict())
    assert MAP in new.state_dict() and MAP not in old.state_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    embedding = nn.Embedding(10, DIM)
    head = heads(embedding)[0]
    assert head.input_map is not None
    nn.init.normal_(head.input_map.weight)
    embedding.to(dtype)
    head.to(dtype)
    tokens = torch.arange(10)
    read = head.as_input(embedding(tokens), tokens)
    assert read.dtype == dtype
    saved = with_rows_of_state(embedding.weight.detach(), head.state_dict(), "")
    assert saved.dtype == dtype
    torch.testing.assert_close(saved, read.detach(), atol=0.05, rtol=0.05)
