"""``mhe_roberta --mhe-bias``: a bias of every token, as fairseq's roberta has it."""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.export import to_stock
from mhe_fairseq.models.roberta import BIAS_WIDTH
from tests.heads_of_models import DIM, VOCAB
from tests.models.test_export import loaded as read
from tests.models.test_export_roberta import checkpoint, loaded
from tests.models.test_options import resolve
from tests.models.test_roberta import HEADS, batch, build

NAMES = ["softmax", "product", "cascade", "sampling"]


@pytest.mark.parametrize("name", NAMES)
def test_every_head_has_it(name: str) -> None:
    model = build(**HEADS[name], mhe_bias=True)
    head = model.encoder.head
    assert head.dim == DIM + BIAS_WIDTH
    # Rows are the head's own.
    shared = model.encoder.sentence_encoder.embed_tokens.weight
    assert all(each is not shared for each in head.parameters())
    tokens, target = batch()
    loss = model(tokens, target=target)
    loss.nll.sum().backward()
    log_probs = model.eval()(tokens)[0].detach()
    found = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if name != "sampling":  # which estimates its loss in training
        torch.testing.assert_close(loss.nll.detach(), found.masked_fill(target.eq(1), 0.0))
    for table in head.parameters():
        assert table.grad is not None
        if table.size(-1) == DIM + BIAS_WIDTH:
            # The number after the features' own has a gradient, those after it have none.
            assert bool(table.grad[..., DIM].any()) and not bool(table.grad[..., DIM + 1 :].any())


@torch.no_grad()
@pytest.mark.parametrize("name", ["softmax", "sampling"])
def test_it_becomes_fairseqs(name: str) -> None:
    ours = build(**HEADS[name], mhe_bias=True).eval()
    state = checkpoint(ours, {"_name": "mhe_masked_lm", "label_smoothing": 0.0, "report_accuracy": False})
    stock = to_stock(read(state), "it")
    assert not stock.tied and (stock.vocab_size, stock.dim) == (VOCAB, DIM)
    theirs = loaded(stock)
    bias = theirs.encoder.lm_head.bias
    torch.testing.assert_close(bias, ours.encoder.head.table.weight[:, DIM])
    assert bool(bias.any())
    tokens, _ = batch()
    output = theirs(tokens)
    torch.testing.assert_close(theirs.get_normalized_probs(output, log_probs=True), ours(tokens)[0])


def test_a_word_is_no_switch() -> None:
    with pytest.raises(MHEError, match="--mhe-bias is true or false, got 'yes'"):
        resolve(mhe_bias="yes")
