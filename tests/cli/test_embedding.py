"""The token embedding of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mhe_fairseq.cli.embedding import read_embedding
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead

DIM, VOCAB = 3, 10


def saved(folder: Path, rows_in_input: bool) -> tuple[Path, nn.Embedding, CascadeHead]:
    torch.manual_seed(1)
    embedding = nn.Embedding(VOCAB, DIM)
    book = Codebook((3, 4), vocab_size=VOCAB)
    head = CascadeHead(DIM, book, tied=embedding, rows_in_input=rows_in_input)
    state = {"decoder.embed_tokens.weight": embedding.weight.detach().half()}
    path = folder / "checkpoint.pt"
    torch.save({"model": {**state, **head.state_dict(prefix="decoder.head.")}}, path)
    return path, embedding, head


@pytest.mark.parametrize("rows_in_input", [False, True])
def test_it_is_what_the_model_reads(tmp_path: Path, rows_in_input: bool) -> None:
    path, embedding, head = saved(tmp_path, rows_in_input)
    wanted = embedding.weight
    if rows_in_input:
        added = head.input_rows(torch.arange(VOCAB))
        assert added is not None
        wanted = wanted + added
    found = read_embedding(path, VOCAB)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=2e-3)


def test_another_number_of_tokens_and_none_at_all(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path, False)
    with pytest.raises(MHEError, match="is of 10 tokens, the dictionary has 11"):
        read_embedding(path, 11)
    torch.save({"model": {"decoder.layers.0.weight": torch.zeros(2)}}, path)
    with pytest.raises(MHEError, match="has no token embedding; looked for decoder.embed_tokens.weight, "):
        read_embedding(path, VOCAB)
