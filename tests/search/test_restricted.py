"""Some tokens are searched, the others are not: beside fairseq's search of a model that gives them -inf."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fairseq.search import BeamSearch, PrefixConstrainedBeamSearch
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.heads import Allowed
from mhe_fairseq.search import CompactGenerator, CompactGeneratorWithAlignment
from tests.drawn import examples
from tests.search.toys import COMPACT, EOS, PAD, UNK, Hypotheses, Toy, check_equal, dictionary, sentences

VOCAB = 90


def muted(model: Any, mask: Tensor, prefix: Tensor | None = None) -> Any:
    """The model, whose tokens that are not allowed have no probability, but where they are given; for one
    batch.

    Args:
        model: of ours.
        mask: (V,) bool.
        prefix: (B, P) given tokens, the same ones in all rows of a column.
    """
    changed, said = copy.copy(model), 0

    def get_normalized_probs(output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        nonlocal said
        wide: Tensor = model.get_normalized_probs(output, log_probs, sample)
        here = mask.clone()
        if prefix is not None and said < prefix.size(1):
            here[prefix[0, said]] = True
        said += 1
        return wide.masked_fill(~here, -torch.inf)

    changed.get_normalized_probs = get_normalized_probs
    return changed


def some(vocab: int, seed: int, share: float = 0.4, unk: bool = False) -> Tensor:
    """A mask of about so many tokens, the end of the sentence among them."""
    mask = torch.rand(vocab, generator=torch.Generator().manual_seed(seed)) < share
    mask[:4] = torch.tensor([False, False, True, unk])
    return mask


def both(
    models: list[Any], mask: Tensor, sample: Any, prefix: Tensor | None = None, kind: Any = CompactGenerator,
    wide: str | None = None, **options: Any,
) -> tuple[Hypotheses, Hypotheses]:  # fmt: skip
    """Hypotheses of the compact generator, restricted, and of fairseq's with muted models."""
    words = dictionary(len(mask))
    strategy = options.pop("search_strategy", BeamSearch)
    options = {"max_len_a": 1, "max_len_b": 6, **options}
    generator = kind(models, words, search_strategy=strategy(words), **options)
    generator.allowed = Allowed(mask)
    reason = generator.why_wide()
    assert reason == wide if wide is None else str(reason).startswith(wide)
    ours = generator.generate(models, sample, prefix_tokens=prefix)
    others = [muted(model, mask, prefix) for model in models]
    stock = SequenceGenerator(others, words, search_strategy=strategy(words), **options)
    return ours, stock.generate(others, sample, prefix_tokens=prefix)


@pytest.mark.parametrize("head", COMPACT)
@pytest.mark.parametrize("share", [0.35, 0.8])
def test_every_head_finds_what_the_v_wide_search_finds(head: str, share: float) -> None:
    for seed in range(2):
        model = Toy(head, VOCAB, seed=seed).build()
        mask = some(VOCAB, seed, share, unk=seed == 1)
        ours, stock = both(
            [model], mask, sentences(VOCAB, 3, seed), beam_size=3, unk_penalty=0.5, len_penalty=0.7
        )
        check_equal(ours, stock)
        said = torch.cat([each["tokens"] for found in ours for each in found])
        assert bool(mask[said].all())


@pytest.mark.slow
@examples(30)
@given(
    head=st.sampled_from(COMPACT), seed=st.integers(0, 2**16), beam=st.integers(1, 5),
    peak=st.sampled_from([0.5, 2.0, 4.0]), share=st.sampled_from([0.4, 0.6, 0.95]),
)  # fmt: skip
def test_any_model(head: str, seed: int, beam: int, peak: float, share: float) -> None:
    model = Toy(head, VOCAB, seed=seed, peak=peak).build()
    ours, stock = both([model], some(VOCAB, seed, share), sentences(VOCAB, 2, seed), beam_size=beam)
    check_equal(ours, stock)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [["cascade 2", "product 2"], ["cascade 3", "tied 2", "mixture 2"]])
def test_ensembles(heads: list[str]) -> None:
    models = [Toy(head, VOCAB, seed=number).build() for number, head in enumerate(heads)]
    for seed in range(4):
        check_equal(*both(models, some(VOCAB, seed), sentences(VOCAB, 2, seed), beam_size=3, unk_penalty=1.0))


@pytest.mark.parametrize("head", ["cascade 2", "product 2", "sampling", "softmax"])
@pytest.mark.parametrize("given_token", [UNK, 77])
def test_a_prefix_is_taken_as_it_is(head: str, given_token: int) -> None:
    mask = some(VOCAB, 5)
    mask[77] = False
    model = Toy(head, VOCAB, seed=4).build()
    prefix = torch.tensor([[given_token, 50]] * 3)
    mask[50] = True
    ours, stock = both([model], mask, sentences(VOCAB, 3, 2), prefix, beam_size=3)
    check_equal(ours, stock)
    assert all(each["tokens"][0] == given_token for found in ours for each in found)


@pytest.mark.parametrize("head", ["cascade 2", "product 2", "softmax"])
def test_where_no_token_is_given_only_allowed_ones_are_found(head: str) -> None:
    """Of a batch with prefixes of several lengths."""
    mask, model = some(VOCAB, 6), Toy(head, VOCAB, seed=4).build()
    mask[77] = False
    generator = CompactGenerator([model], dictionary(VOCAB), beam_size=3, max_len_b=6)
    generator.allowed = Allowed(mask)
    sample = sentences(VOCAB, 2, 2)
    prefix = torch.tensor([[77, UNK], [77, PAD]])
    found = generator.generate([model], sample, prefix_tokens=prefix)
    assert all(each["tokens"][:2].tolist() == [77, UNK] for each in found[0])
    assert all(each["tokens"][0] == 77 and bool(mask[each["tokens"][1:]].all()) for each in found[1])
    # As if the second were alone.
    alone = {name: value[1:] for name, value in sample["net_input"].items()}
    other = generator.generate(
        [model], {"id": sample["id"][1:], "net_input": alone}, prefix_tokens=prefix[1:, :1]
    )
    check_equal(found[1:], other, attention=False)


def test_what_needs_the_whole_vocabulary_is_restricted_too() -> None:
    model, mask, sample = Toy("cascade 2", VOCAB, seed=3).build(), some(VOCAB, 3), sentences(VOCAB, 2, 3)
    check_equal(*both([model], mask, sample, wide="--temperature", temperature=0.7, beam_size=3))
    check_equal(*both([model], mask, sample, wide="--no-repeat", no_repeat_ngram_size=2, beam_size=3))
    strategy = lambda words: PrefixConstrainedBeamSearch(words, lambda *_: [EOS, *range(20, 60)])  # noqa: E731
    check_equal(*both([model], mask, sample, wide="PrefixCon", search_strategy=strategy, beam_size=3))
    few = torch.zeros(VOCAB, dtype=torch.bool)
    few[[EOS, *range(30, 40)]] = True
    check_equal(*both([model], few, sample, wide="10 allowed tokens are too few for beam 2", beam_size=2))


def test_alignments() -> None:
    model, mask, sample = Toy("cascade 2", VOCAB, seed=3).build(), some(VOCAB, 3), sentences(VOCAB, 2, 3)
    ours, stock = both([model], mask, sample, kind=CompactGeneratorWithAlignment, beam_size=3)
    check_equal(ours, stock, attention=False)
    assert all("alignment" in each for found in ours for each in found)


def test_groups_without_allowed_tokens_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy("cascade 2", VOCAB, seed=1, peak=0.5).build()
    head, level = model.decoder.head, model.decoder.head.levels[0]
    live = [0, 2, 5]
    tokens = torch.cat([head.codebook.token_of_slot.view(level.prefixes, -1)[group] for group in live])
    mask = torch.zeros(VOCAB, dtype=torch.bool)
    mask[tokens[tokens >= 0]] = True
    mask[:4] = False
    opened: set[int] = set()
    kept = type(level).log_softmax

    def log_softmax(self: Any, x: Tensor, prefix: Tensor, row: Tensor) -> Tensor:
        opened.update(prefix.tolist())
        return kept(self, x, prefix, row)

    monkeypatch.setattr(type(level), "log_softmax", log_softmax)
    features = torch.randn(6, head.dim, dtype=torch.float64)
    nothing = torch.zeros(0, dtype=torch.long)
    scores = features.new_zeros(6)
    found, named = head.read(features).only(Allowed(mask)).beam_candidates(4, scores, 2, nothing)
    assert opened <= set(live)
    wide = head.log_probs(features).masked_fill(~mask, -torch.inf)
    for sentence in range(3):
        best = wide[2 * sentence : 2 * sentence + 2].flatten().topk(4).values
        here = found[2 * sentence : 2 * sentence + 2].flatten().topk(4).values
        torch.testing.assert_close(here, best)
    is_found = found > -torch.inf
    torch.testing.assert_close(found[is_found], wide.gather(1, named)[is_found])
