"""A head for another dictionary: what stays is as likely as before, but for the share of what is new."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.coding.codebook import ravel
from mhe_fairseq.coding.regrow import regrow
from mhe_fairseq.coding.symbols import Origins, trace
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead
from mhe_fairseq.heads.regrow import regrow_head
from tests.drawn import examples
from tests.heads.cases import CASES, DIM, Model, build_model, every_head
from tests.heads.oracle import codebooks, features_for
from tests.heads.regrown import kept_of, origins_of

TIED_GROUPS = tuple(name for name in CASES if "tied groups" in name) + ("product tied", "mixture tied")


def follow(name: str, model: Model, book: Codebook, origins: Origins) -> Model:
    """The model for the new dictionary."""
    embedding = None if model.embed is None else model.embed.weight.detach()
    state = {key: value.detach() for key, value in model.head.state_dict().items()}
    grown = regrow_head(state, book, origins, embedding, tied_groups=name in TIED_GROUPS)
    new = build_model(name, book)
    new.head.load_state_dict(grown.state)
    if model.embed is not None:
        assert new.embed is not None and grown.embedding is not None
        new.embed.weight.data.copy_(grown.embedding)
    return new


@every_head
@examples(20)
@given(data=st.data())
def test_a_permutation_changes_no_probability(name: str, data: st.DataObject) -> None:
    book = data.draw(CASES[name].codebooks(60))
    origins = data.draw(origins_of(len(book), stays=True))
    model = build_model(name, book)
    features = features_for(3, DIM, torch.float64, 1)
    grown = regrow(book, origins)
    assert grown.lengths == book.lengths
    assert grown.slots.tolist() == book.slots[origins.old].tolist()
    new = follow(name, model, grown, origins)
    before = model.head.log_probs(features)[:, origins.old]
    torch.testing.assert_close(new.head.log_probs(features), before, atol=1e-9, rtol=0)


def test_predicted_draws_go_on_with_what_they_predict() -> None:
    """First digits stay, and so does what their shares are predicted from."""
    book = Codebook((5, 6), vocab_size=20)
    head = SamplingHead(DIM, book, groups=2, variant="predicted").double()
    assert head.predictor is not None
    torch.nn.init.normal_(head.predictor.weight)
    old = [f"s{i}" for i in range(20)]
    origins = trace(old, [*old[:3], "new", *old[3:]])
    grown = regrow(book, origins)
    state = regrow_head(
        {key: value.detach() for key, value in head.state_dict().items()}, grown, origins
    ).state
    new = SamplingHead(DIM, grown, groups=2, variant="predicted").double()
    new.load_state_dict(state)
    assert new.predictor is not None
    x, groups = features_for(3, DIM, torch.float64, 1), torch.arange(4)
    assert torch.equal(new.predictor(x, groups), head.predictor(x, groups))


@every_head
@examples(40)
@given(data=st.data())
def test_tokens_that_stay_keep_their_odds(name: str, data: st.DataObject) -> None:
    book = data.draw(CASES[name].codebooks(60))
    origins = data.draw(origins_of(len(book)))
    model = build_model(name, book)
    features = features_for(3, DIM, torch.float64, 1)
    grown = regrow(book, origins)
    old_digits, new_digits = kept_of(book, grown, origins)
    assert torch.equal(old_digits, new_digits)
    if CASES[name].groups > len(grown.digits(torch.arange(len(grown)))[:, 0].unique()):
        return
    new = follow(name, model, grown, origins)
    if "mixture" in name and has_fresh_values(grown, origins, old_digits):
        # They take from each component what they take: no two tokens lose alike.
        assert new.head.log_probs(features).isfinite().all()
        return
    before = model.head.log_probs(features).detach()[:, origins.old[origins.kept]]
    after = new.head.log_probs(features).detach()[:, origins.kept]
    assert after.isfinite().all()
    # A cascade's groups lose to their own new tokens only, the groups among each other to groups of new ones.
    levels = book.heads if name.startswith("cascade") else 1
    for level in range(levels):
        prefix = ravel(old_digits[:, :level], book.lengths[:level]) if level else torch.zeros(len(old_digits))
        for each in prefix.unique():
            inside = (prefix == each).nonzero().squeeze(-1)
            if level == levels - 1:
                shift = after[:, inside] - before[:, inside]
                torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-8, rtol=0)
                continue
            groups = old_digits[inside, : level + 1].unique(dim=0)
            change = torch.stack(
                [
                    mass(new.head, features, grown, group) - mass(model.head, features, book, group)
                    for group in groups
                ],
                dim=1,
            )
            torch.testing.assert_close(change, change[:, :1].expand_as(change), atol=1e-8, rtol=0)


def has_fresh_values(book: Codebook, origins: Origins, kept: Tensor) -> bool:
    """Whether digits have values that no token has that stays."""
    new = book.digits(origins.new)
    return any(not torch.isin(new[:, h], kept[:, h]).all() for h in range(book.heads))


def mass(head: OutputHead, features: Tensor, book: Codebook, first: Tensor) -> Tensor:
    """log p of all tokens with these first digits. Shape: (N, d), (H',) -> (N,)."""
    digits = book.digits(torch.arange(len(book)))[:, : len(first)]
    return head.log_probs(features).detach()[:, (digits == first).all(dim=1)].logsumexp(dim=1)


def cascade(book: Codebook, embed: nn.Embedding) -> OutputHead:
    return CascadeHead(DIM, book, tied=embed, tied_groups=embed, rows_in_input=True)


def product(book: Codebook, embed: nn.Embedding) -> OutputHead:
    return ProductHead(DIM, book, tied=embed, rows_in_input=True)


def embedded(head: Any, embed: nn.Embedding, tokens: Tensor) -> Tensor:
    return (embed.weight[tokens] + head.input_rows(tokens)).detach()


@pytest.mark.parametrize("make", [cascade, product])
@examples(60)
@given(data=st.data())
def test_rows_of_groups_in_the_input_stay_what_they_add_up_to(make: Any, data: st.DataObject) -> None:
    book = data.draw(codebooks(40, 2, 3))
    origins = data.draw(origins_of(len(book), most_new=12))
    torch.manual_seed(1)
    embed = nn.Embedding(len(book), DIM)
    head = make(book, embed).double()
    embed.double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    grown = regrow(book, origins)
    result = regrow_head(head.state_dict(), grown, origins, embed.weight.detach(), tied_groups=True)
    assert result.embedding is not None
    new_embed = nn.Embedding.from_pretrained(result.embedding)
    new = make(grown, new_embed).double().eval()
    new.load_state_dict(result.state)
    kept = origins.kept
    before, after = embedded(head, embed, origins.old[kept]), embedded(new, new_embed, kept)
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)
    features = features_for(2, DIM, torch.float64, 1)
    old_digits, _ = kept_of(book, grown, origins)
    shift = new.log_probs(features).detach()[:, kept]
    shift = shift - head.eval().log_probs(features).detach()[:, origins.old[kept]]
    prefix = ravel(old_digits[:, :-1], book.lengths[:-1]) * (make is cascade)
    for each in prefix.unique():
        inside = shift[:, prefix == each]
        torch.testing.assert_close(inside, inside[:, :1].expand_as(inside), atol=1e-8, rtol=0)


def test_new_rows_are_the_mean_of_their_pieces_or_near_the_tables() -> None:
    book = Codebook((2, 3), torch.tensor([0, 1, 3, 4]))
    model = build_model("cascade", book)
    origins = Origins(torch.tensor([3, -1, 0, 1, 2, -1]), {1: [0, 2]}, 4)
    new = follow("cascade", model, regrow(book, origins), origins)
    old_rows, rows = (local_rows(each.head) for each in (model, new))
    torch.testing.assert_close(rows[1], (old_rows[0] + old_rows[2]) / 2)
    assert not torch.equal(rows[5], rows[1])
    again = follow("cascade", model, regrow(book, origins), origins)
    assert torch.equal(local_rows(again.head), rows)


def local_rows(head: OutputHead) -> Tensor:
    """Of a cascade's tokens, (V, d)."""
    return head.state_dict()["local.table"].flatten(0, 1)[head.codebook_slots]


def test_half_precision_stays_what_it_is() -> None:
    book = Codebook((3, 2), torch.tensor([0, 2, 3, 4, 5]))
    model = build_model("cascade tied groups", book, torch.float16)
    origins = Origins(torch.tensor([4, 3, 2, 1, 0]), {}, 5)
    state = model.head.state_dict()
    assert model.embed is not None
    grown = regrow_head(state, regrow(book, origins), origins, model.embed.weight.detach(), tied_groups=True)
    assert {name: value.dtype for name, value in grown.state.items()} == {
        name: value.dtype for name, value in state.items()
    }
    assert torch.equal(grown.state["group.weight"], state["group.weight"])


def test_a_tensor_that_no_head_has_is_named() -> None:
    book = Codebook((2, 2))
    state = build_model("cascade", book).head.state_dict() | {"extra.table": torch.zeros(4, 2)}
    with pytest.raises(MHEError, match=r"extra\.table of shape \(4, 2\)"):
        regrow_head(dict(state), book, Origins(torch.arange(4), {}, 4))
