"""What every head finds when only some tokens may be found, against its V-wide scores."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import Allowed
from tests.drawn import examples
from tests.heads.cases import CASES, DIM, build, every_head
from tests.heads.oracle import features_for


@every_head
@examples(20)
@given(data=st.data(), sentences=st.integers(1, 3), beam=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_best_allowed_tokens(
    name: str, data: st.DataObject, sentences: int, beam: int, seed: int
) -> None:
    book = data.draw(CASES[name].codebooks(120).filter(lambda book: len(book) > 8))
    share = data.draw(st.sampled_from([0.1, 0.5, 0.9]))
    mask = torch.rand(len(book), generator=torch.Generator().manual_seed(seed)) < share
    mask[:4], mask[5] = False, True
    allowed, k = Allowed(mask), data.draw(st.integers(1, min(6, len(book) - 4)))
    count, special = sentences * beam, torch.arange(4)
    head, features = build(name, book, torch.float64, seed), features_for(count, DIM, torch.float64, seed)
    with torch.no_grad():
        wide = head.log_probs(features)
        reading = head.read(features).only(allowed)
        found = reading.candidates(k, special)
        log_probs, table = wide.new_empty(count, 4 + k), special.new_zeros(count, 4 + k)
        reading.begin(log_probs, table, special)
        scores = wide.new_zeros(count)
        reading.finish(log_probs, table, special, scores, beam)
    # Tokens that are asked for have the probability that they have.
    torch.testing.assert_close(found.given, wide[:, :4])
    torch.testing.assert_close(log_probs[:, :4], wide[:, :4])
    wide = wide.masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(found.scores, wide.topk(k).values)
    there = found.scores > -torch.inf
    torch.testing.assert_close(found.scores[there], wide.gather(1, found.tokens)[there])
    # Of a search's table the best of every sentence.
    best = log_probs[:, 4:].reshape(sentences, -1).topk(k).values
    torch.testing.assert_close(best, wide.view(sentences, -1).topk(k).values)
    kept = log_probs[:, 4:] > -torch.inf
    assert bool(mask[table[:, 4:][kept]].all())


def test_levels_are_kept_for_a_head() -> None:
    book = Codebook((2, 3, 2), torch.tensor([8, 0, 11, 10, 2, 9, 1]))
    mask = torch.tensor([False, True, False, False, False, True, False])  # slots 0 and 9
    allowed, head = Allowed(mask, "some"), build("cascade", Codebook((3, 4), vocab_size=9))
    one, two, three = allowed.levels(head, book, torch.device("cpu"))
    assert one.tolist() == [True, True]
    assert two.tolist() == [True, False, False, False, True, False]
    assert three.nonzero().flatten().tolist() == [0, 9]
    assert allowed.levels(head, book, torch.device("cpu"))[0] is one
    assert (allowed.count, allowed.others) == (2, 1)
