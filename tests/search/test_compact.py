"""The compact search finds what fairseq's V-wide search finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.heads.base import Candidates
from tests.drawn import examples
from tests.search.toys import COMPACT, EOS, PAD, UNK, Toy, both, check_equal, seeds, sentences, toys

options = st.fixed_dictionaries(
    {
        "beam_size": st.integers(1, 10),
        "len_penalty": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "normalize_scores": st.booleans(),
        "min_len": st.sampled_from([1, 3]),
        "unk_penalty": st.sampled_from([0.0, 5.0, -5.0]),
        "max_len_a": st.sampled_from([0, 1]),
        "max_len_b": st.sampled_from([3, 6]),
        "match_source_len": st.booleans(),
    }
).filter(lambda drawn: not (drawn["match_source_len"] and drawn["min_len"] > 1))
counts = st.integers(1, 4)


@pytest.mark.slow
@examples(60)
@given(toy=toys, chosen=options, count=counts, seed=seeds)
def test_one_model(toy: Toy, chosen: dict[str, Any], count: int, seed: int) -> None:
    check_equal(*both([toy.build()], sentences(toy.vocab, count, seed), **chosen))


@pytest.mark.parametrize("head", COMPACT)
def test_every_head(head: str) -> None:
    """In single precision, the two ways round differently."""
    model = Toy(head, seed=3, dtype=torch.float32).build()
    check_equal(*both([model], sentences(60, 3, 3), beam_size=4), tolerance=1e-5)


@pytest.mark.slow
@examples(30)
@given(
    vocab=st.integers(40, 120), data=st.data(), size=st.integers(2, 3), chosen=options, count=counts,
    seed=seeds,
)  # fmt: skip
def test_an_ensemble(
    vocab: int, data: st.DataObject, size: int, chosen: dict[str, Any], count: int, seed: int
) -> None:
    """Models with heads and codebooks of their own, that mostly disagree about the best tokens."""
    drawn = data.draw(st.lists(toys, min_size=size, max_size=size))
    models = [Toy(toy.head, vocab, toy.seed, toy.peak, toy.eos).build() for toy in drawn]
    check_equal(*both(models, sentences(vocab, count, seed), **chosen))


def test_an_ensemble_asks_for_more_candidates_until_they_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sharp models that agree on nothing: the best of the mean are far down in both."""
    models = [Toy("product 2", 120, seed, peak=0.3, eos=0.0).build() for seed in (1, 2)]
    head = models[0].decoder.head
    candidates, asked = head.candidates, set()

    def ask(features: Tensor, k: int, tokens: Tensor) -> Candidates:
        asked.add(k)
        return candidates(features, k, tokens)

    monkeypatch.setattr(head, "candidates", ask)
    check_equal(*both(models, sentences(120, 2, 1), beam_size=3))
    assert asked > {2 * 3 + 4}


@st.composite
def prefixes(draw: st.DrawFn, count: int, vocab: int) -> Tensor:
    """(count, P) of different lengths, padded; with words and unk, some with eos at their end."""
    words = st.lists(st.one_of(st.just(UNK), st.just(0), st.integers(4, vocab - 1)), max_size=3)
    endings = st.sampled_from([[], [EOS]])
    rows = []
    for _ in range(count):
        row = draw(words)
        # fairseq itself fails on a prefix of nothing but eos.
        rows.append(row + draw(endings) if row else row)
    width = max(1, *map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


@pytest.mark.slow
@examples(60)
@given(
    data=st.data(), vocab=st.integers(40, 120), size=st.sampled_from([1, 1, 2]), chosen=options,
    count=st.integers(2, 5), seed=seeds,
)  # fmt: skip
def test_prefixes(
    data: st.DataObject, vocab: int, size: int, chosen: dict[str, Any], count: int, seed: int
) -> None:
    drawn = data.draw(st.lists(toys, min_size=size, max_size=size))
    models = [Toy(toy.head, vocab, toy.seed, toy.peak, toy.eos).build() for toy in drawn]
    prefix = data.draw(prefixes(count, vocab))
    chosen = {**chosen, "max_len_b": 6, "match_source_len": False}
    ours, stock = both(models, sentences(vocab, count, seed), prefix_tokens=prefix, **chosen)
    # Where a prefix ends in eos, fairseq copies the tokens of one beam to the others, not their attention,
    # which is of whatever impossible words those had.
    check_equal(ours, stock, attention=not (prefix == EOS).any())
    for row, found in zip(prefix, ours, strict=True):
        begin = row[row != PAD].tolist()
        assert all(h["tokens"].tolist()[: len(begin)] == begin for h in found)


@pytest.mark.slow
def test_a_prefix_that_is_no_candidate_is_followed() -> None:
    """The least probable words of the vocabulary, two of them in a row."""
    model = Toy("cascade 2", 100, seed=5, peak=4.0).build()
    for word in range(4, 100, 7):
        prefix = torch.tensor([[word, 99 - word + 4], [UNK, PAD]])
        check_equal(*both([model], sentences(100, 2, word), prefix_tokens=prefix, beam_size=2))


@pytest.mark.slow
@examples(25)
@given(toy=toys, chosen=options, data=st.data(), count=counts, seed=seeds, size=st.integers(1, 2))
def test_a_symbol_of_its_own_ends(
    toy: Toy, chosen: dict[str, Any], data: st.DataObject, count: int, seed: int, size: int
) -> None:
    """As mBART's languages; what a sentence begins with may be it, eos, or any other."""
    end = data.draw(st.integers(4, toy.vocab - 1))
    models = [replace(toy, seed=toy.seed + number, end=end).build() for number in range(size)]
    begin = data.draw(st.sampled_from([None, EOS, end, 4]))
    # fairseq does not take a prefix of nothing but the end.
    first = data.draw(st.sampled_from([[], [EOS], [UNK, EOS], [EOS, end]]))
    prefix = torch.tensor([first] * count) if first else None
    sample = sentences(toy.vocab, count, seed)
    # As of the prefixes above.
    chosen = {**chosen, "max_len_b": 6, "match_source_len": False}
    ours, stock = both(models, sample, prefix, bos_token=begin, eos=end, **chosen)
    check_equal(ours, stock, attention=end not in first)


def test_hypotheses_end_with_that_symbol() -> None:
    """And eos is a word like others: here what the first step must say."""
    model = Toy("cascade 2", seed=3, end=44).build()
    ours, _ = both([model], sentences(60, 3, 3), torch.full((3, 1), EOS), beam_size=4, eos=44)
    said = [hypothesis["tokens"].tolist() for found in ours for hypothesis in found]
    assert len(said) == 12
    for tokens in said:
        assert tokens[0] == EOS and tokens[-1] == 44 and 44 not in tokens[:-1]


@pytest.mark.parametrize("head", ["product 2", "mixture 3", "cascade 3", "tied 2", "bottleneck 2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(head: str, dtype: torch.dtype) -> None:
    models = [Toy(head, 80, seed, dtype=dtype).build() for seed in (1, 2)]
    for ensemble in (models[:1], models):
        prefix = torch.tensor([[7, 9], [8, PAD], [PAD, PAD]])
        for prefix_tokens in (None, prefix):
            check_equal(*both(ensemble, sentences(80, 3, 1), prefix_tokens, beam_size=4), tolerance=1e-4)
