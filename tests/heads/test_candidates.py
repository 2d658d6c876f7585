"""What a beam search asks of a head: log-probabilities of some tokens, and the best ones with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from tests.drawn import examples
from tests.heads.cases import CASES, DIM, build, every_head, every_head_and_lengths
from tests.heads.oracle import TOLERANCE, features_for, targets_for

dtypes = st.sampled_from(list(TOLERANCE))
counts = st.sampled_from([0, 1, 2, 7])
seeds = st.integers(0, 99)
half_as_many = examples(30)


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    """For log-probabilities of the same features by two ways."""
    small = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 10 * TOLERANCE[dtype])
    return {"atol": small, "rtol": small / 10}


@every_head
@half_as_many
@given(data=st.data(), dtype=dtypes, count=counts, width=st.integers(1, 9), seed=seeds)
def test_log_prob_of_is_log_probs(
    name: str, data: st.DataObject, dtype: torch.dtype, count: int, width: int, seed: int
) -> None:
    """Of tokens shared by the rows, and of each row's own; a token may come twice."""
    book = data.draw(CASES[name].codebooks())
    head, features = build(name, book, dtype, seed), features_for(count, DIM, dtype, seed)
    log_probs = head.log_probs(features).detach()
    shared, own = targets_for(book, width, seed), targets_for(book, count * width, seed).view(count, width)
    for tokens in (shared, own):
        with torch.no_grad():
            actual = head.log_prob_of(features, tokens)
        assert actual.shape == (count, width) and actual.dtype == log_probs.dtype
        expected = log_probs.gather(1, tokens.expand(count, -1))
        torch.testing.assert_close(actual, expected, **tolerance(dtype))


@every_head
@half_as_many
@given(data=st.data(), dtype=dtypes, count=counts, seed=seeds)
def test_candidates_are_topk_and_log_prob_of(
    name: str, data: st.DataObject, dtype: torch.dtype, count: int, seed: int
) -> None:
    book = data.draw(CASES[name].codebooks())
    k = data.draw(st.integers(1, min(14, len(book))))
    head, features = build(name, book, dtype, seed), features_for(count, DIM, dtype, seed)
    asked = torch.arange(min(4, len(book)))
    with torch.no_grad():
        found, log_probs = head.candidates(features, k, asked), head.log_probs(features)
    assert found.scores.shape == found.tokens.shape == (count, k)
    assert found.given.shape == (count, len(asked))
    torch.testing.assert_close(found.scores, log_probs.topk(k).values, **tolerance(dtype))
    torch.testing.assert_close(found.scores, log_probs.gather(1, found.tokens), **tolerance(dtype))
    torch.testing.assert_close(found.given, log_probs[:, asked], **tolerance(dtype))
    assert (found.scores.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == k for row in found.tokens.tolist())


@every_head
@half_as_many
@given(data=st.data(), dtype=dtypes, sentences=st.integers(0, 3), beam=st.integers(1, 4), seed=seeds)
def test_beam_candidates_have_the_best_of_every_sentence(
    name: str, data: st.DataObject, dtype: torch.dtype, sentences: int, beam: int, seed: int
) -> None:
    """Some tokens are not looked for, some hypotheses are not to be continued."""
    book = data.draw(CASES[name].codebooks().filter(lambda book: len(book) > 2))
    without = torch.arange(data.draw(st.integers(0, min(4, len(book) - 2))))
    k = data.draw(st.integers(1, min(10, len(book) - len(without))))
    count = sentences * beam
    head, features = build(name, book, dtype, seed), features_for(count, DIM, dtype, seed)
    spread = data.draw(st.sampled_from([0.0, 1.0, 8.0]))
    draw = torch.Generator().manual_seed(seed)
    scores = -spread * torch.rand(count, generator=draw, dtype=torch.float64)
    scores[torch.rand(count, generator=draw) < 0.2] = -torch.inf
    with torch.no_grad():
        log_probs = head.log_probs(features)
        scores = scores.to(log_probs.dtype)
        found, tokens = head.beam_candidates(features, k, scores, beam, without)
    assert found.shape == tokens.shape == (count, k)
    there = found != -torch.inf
    assert not torch.isin(tokens, without)[there].any()
    torch.testing.assert_close(found[there], log_probs.gather(1, tokens)[there], **tolerance(dtype))
    for row, kept in zip(tokens.tolist(), there.tolist(), strict=True):
        real = [token for token, is_there in zip(row, kept, strict=True) if is_there]
        assert len(set(real)) == len(real)
    if sentences:
        log_probs[:, without] = -torch.inf
        everything = (log_probs + scores.unsqueeze(1)).view(sentences, -1)
        best = (found + scores.unsqueeze(1)).view(sentences, -1).topk(k).values
        torch.testing.assert_close(best, everything.topk(k).values, **tolerance(dtype))


@every_head_and_lengths
def test_candidates_refuse_a_bad_k(name: str, lengths: tuple[int, ...]) -> None:
    head = build(name, Codebook(lengths, vocab_size=9))
    for k in (0, 10):
        with pytest.raises(MHEError, match=f"1 <= k <= 9.*got {k}"):
            head.candidates(features_for(2, DIM, torch.float64, 0), k, torch.arange(4))


@every_head_and_lengths
@pytest.mark.parametrize("count", [0, 3])
def test_no_tokens_are_asked_for(name: str, lengths: tuple[int, ...], count: int) -> None:
    head = build(name, Codebook(lengths, vocab_size=9))
    with torch.no_grad():
        found = head.log_prob_of(features_for(count, DIM, torch.float64, 0), torch.zeros(0, dtype=torch.long))
    assert found.shape == (count, 0)
