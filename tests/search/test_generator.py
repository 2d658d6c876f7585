"""Which search is taken, that it says so once, and that V-wide results are fairseq's own."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fairseq import search
from fairseq.sequence_generator import EnsembleModel, SequenceGeneratorWithAlignment
from fairseq.token_generation_constraints import pack_constraints
from torch import Tensor, nn

from mhe_fairseq.search import CompactGenerator, CompactGeneratorWithAlignment
from tests.search.toys import Toy, both, check_equal, dictionary, sentences, transformer

VOCAB = 60
LOGGER = "mhe_fairseq.search.generator"


class Unigrams(nn.Module):
    """A language model that has read nothing."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.linspace(-1, 1, VOCAB, dtype=torch.float64).expand(*tokens.shape, VOCAB)

    def get_normalized_probs(self, output: Tensor, log_probs: bool, sample: Any) -> Tensor:
        return output.log_softmax(dim=-1)


#: Options of a generator, and the reason given for the V-wide search.
WIDE: dict[str, tuple[dict[str, Any], str]] = {
    "n-grams": ({"no_repeat_ngram_size": 2}, "--no-repeat-ngram-size"),
    "temperature": ({"temperature": 0.7}, "--temperature 0.7"),
    "language model": ({"lm_model": Unigrams(), "lm_weight": 0.3}, "a language model's scores are added"),
    "suppressed": ({"tokens_to_suppress": ("w3", "w7")}, "suppressed tokens"),
    "sampling": ({"search_strategy": lambda words: search.Sampling(words, 10)}, "Sampling"),
    "top p": ({"search_strategy": lambda words: search.Sampling(words, sampling_topp=0.8)}, "Sampling"),
    "diverse beams": (
        {"search_strategy": lambda words: search.DiverseBeamSearch(words, 2, 0.5)},
        "DiverseBeamSearch",
    ),
    "diverse siblings": (
        {"search_strategy": lambda words: search.DiverseSiblingsSearch(words, 0.5)},
        "DiverseSiblingsSearch",
    ),
    "allowed tokens": (
        {
            "search_strategy": lambda words: search.PrefixConstrainedBeamSearch(
                words, lambda sentence, said: [2, *range(10 + len(said), 20 + len(said))]
            )
        },
        "PrefixConstrainedBeamSearch",
    ),
    "source length": (
        {
            "search_strategy": lambda words: search.LengthConstrainedBeamSearch(words, 1, 0, 1, 0),
            "match_source_len": True,
        },
        "LengthConstrainedBeamSearch",
    ),
    "wide beam": ({"beam_size": 30}, "a vocabulary of 60 tokens is too small for beam 30"),
    "end": ({"eos": 3}, "<unk> ends hypotheses"),
}


@pytest.mark.parametrize("name", WIDE)
def test_what_needs_the_whole_vocabulary_gets_it(name: str, caplog: pytest.LogCaptureFixture) -> None:
    options, reason = WIDE[name]
    model = Toy("cascade 2", VOCAB, seed=2).build()
    with caplog.at_level(logging.INFO, LOGGER):
        ours, stock = both([model], sentences(VOCAB, 3, 1), wide=reason, **{"beam_size": 4, **options})
    check_equal(ours, stock, tolerance=0)
    assert caplog.messages == [f"mhe: V-wide search: {reason}"]


@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_constraints_are_met(order: str) -> None:
    model = Toy("product 2", VOCAB, seed=2).build()
    wanted = [[20, 21], [33]]
    packed = pack_constraints([[torch.tensor(words)] for words in wanted])
    ours, stock = both(
        [model], sentences(VOCAB, 2, 1), constraints=packed, wide="LexicallyConstrainedBeamSearch",
        beam_size=4, search_strategy=lambda words: search.LexicallyConstrainedBeamSearch(words, order),
    )  # fmt: skip
    check_equal(ours, stock, tolerance=0)
    for words, found in zip(wanted, ours, strict=True):
        assert set(words) <= set(found[0]["tokens"].tolist())


def test_constraints_without_their_search_are_refused_as_ever() -> None:
    generator = CompactGenerator([Toy().build()], dictionary(VOCAB))
    with pytest.raises(NotImplementedError, match="constraints"):
        generator.generate([], sentences(VOCAB, 1, 1), constraints=torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        (["stock"], "TransformerModel has no head that finds the best tokens by itself"),
        (["cascade 2", "stock"], "TransformerModel has no head that finds the best tokens by itself"),
    ],
)
def test_models_that_have_no_compact_way(heads: list[str], reason: str) -> None:
    models = [
        transformer(VOCAB, 1, "transformer").double() if head == "stock" else Toy(head, VOCAB).build()
        for head in heads
    ]
    check_equal(*both(models, sentences(VOCAB, 3, 1), wide=reason, beam_size=3), tolerance=0)


def test_an_ensemble_of_another_kind_is_left_to_itself() -> None:
    class Loudest(EnsembleModel):
        pass

    generator = CompactGenerator(Loudest([Toy().build()]), dictionary(VOCAB))
    assert generator.why_wide() == "Loudest combines the models in a way of its own"


def test_attributes_may_be_changed_between_batches(caplog: pytest.LogCaptureFixture) -> None:
    model, sample = Toy("product 2", VOCAB, seed=4).build(), sentences(VOCAB, 3, 1)
    generator = CompactGenerator([model], dictionary(VOCAB), temperature=2.0, beam_size=2, max_len_b=8)
    before = dict(generator._modules)
    with caplog.at_level(logging.INFO, LOGGER):
        generator.generate([model], sample)
        generator.temperature = 1.0
        for beam_size in (2, 7, 3):
            generator.beam_size = beam_size
            ours = generator.generate([model], sample)
            _, stock = both([model], sample, beam_size=beam_size, max_len_a=0, max_len_b=8)
            check_equal(ours, stock)
    # One line of this generator for each way, and one of each of the three that were compared.
    assert caplog.messages == ["mhe: V-wide search: --temperature 2.0"] + ["mhe: compact search"] * 4
    # The generator itself stays what it was: others may be using it, and `cuda()` finds one of each model.
    assert dict(generator._modules) == before
    assert generator.vocab_size == VOCAB


def test_a_failed_search_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = Toy("product 2", VOCAB, seed=4).build(), sentences(VOCAB, 2, 1)
    generator = CompactGenerator([model], dictionary(VOCAB), beam_size=2, max_len_b=8)
    expected = generator.generate([model], sample)
    with monkeypatch.context() as patch:
        patch.setattr(model.decoder.head, "candidates", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generator.generate([model], sample)
    check_equal(generator.generate([model], sample), expected, tolerance=0)


def test_threads_share_a_generator() -> None:
    model = Toy("cascade 2", VOCAB, seed=4).build()
    generator = CompactGenerator([model], dictionary(VOCAB), beam_size=3, max_len_b=8)
    batches = [sentences(VOCAB, 1 + seed % 3, seed) for seed in range(12)]
    expected = [generator.generate([model], batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: generator.generate([model], batch), batches))
    for mine, theirs in zip(found, expected, strict=True):
        check_equal(mine, theirs, tolerance=0)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_alignments(kind: str, count: int, caplog: pytest.LogCaptureFixture) -> None:
    models = [Toy("product 2", VOCAB, seed).build() for seed in range(count)]
    sample, words = sentences(VOCAB, 3, 1), dictionary(VOCAB)
    found = []
    with caplog.at_level(logging.INFO, LOGGER):
        for generator in (CompactGeneratorWithAlignment, SequenceGeneratorWithAlignment):
            aligning = generator(models, words, print_alignment=kind, beam_size=3, max_len_b=8)
            found.append(aligning.generate(models, sample))
    assert caplog.messages == ["mhe: compact search"]
    check_equal(*found)
    for mine, theirs in zip(*found, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert str(a["alignment"]) == str(b["alignment"])


def test_a_batch_of_one_sentence_of_one_word_with_a_beam_of_one() -> None:
    sample = {"net_input": {"src_tokens": torch.tensor([[9, 2]]), "src_lengths": torch.tensor([2])}}
    for seed in range(5):
        check_equal(*both([Toy("cascade 3", VOCAB, seed).build()], sample, beam_size=1))


def test_a_model_that_only_knows_nan_fails_as_fairseqs_search_does() -> None:
    model = Toy("product 2", VOCAB).build()
    with torch.no_grad():
        model.decoder.head.bias.fill_(torch.nan)
    for wide in (False, True):
        generator = CompactGenerator(
            [model], dictionary(VOCAB), temperature=2.0 if wide else 1.0, max_len_b=3
        )
        with pytest.raises(AssertionError):
            generator.generate([model], sentences(VOCAB, 1, 1))
