"""The kernels of beam search, against dense log-probabilities of every token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead
from mhe_fairseq.heads.kernels import dispatch, launch
from mhe_fairseq.heads.kernels.step_counts import search_launches
from mhe_fairseq.heads.product import search_kernels as product_search_kernels
from tests.drawn import examples
from tests.heads.cases import CASES, DIM, build
from tests.heads.kernels.both import PHASES, Operators, plain_torch
from tests.heads.oracle import features_for, targets_for
from tests.search.one_step import Step

FLOAT = torch.float32
SEARCHED = [
    name for name in CASES if name.startswith(("product", "mixture", "cascade")) and "sharded" not in name
]
every_searched = pytest.mark.parametrize("name", SEARCHED)
counts = st.sampled_from([0, 1, 2, 7])
seeds = st.integers(0, 99)
#: What the kernels write log-probabilities to.
WRITTEN = {
    "best_first_kernel": ("out",),
    "given_kernel": ("out",),
    "best_tokens_kernel": ("scores", "given"),
}
close: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-5}


class Launched:
    """Names of the kernels that are launched within."""

    def __enter__(self) -> list[str]:
        self.names: list[str] = []
        self._watched = launch.watched(self._saw)
        self._watched.__enter__()
        return self.names

    def __exit__(self, *error: Any) -> None:
        self._watched.__exit__(*error)

    def _saw(self, seen: launch.Launch) -> bool:
        self.names.append(seen.kernel.__name__)
        return True


def served(head: OutputHead, count: int) -> bool:
    """A product of one digit is one soft-max; nothing is to be found in no rows."""
    return count > 0 and head.codebook.heads > 1 and len(head.codebook) > 0


@pytest.mark.slow
@every_searched
@examples(6, phases=PHASES)
@given(data=st.data(), count=counts, seed=seeds)
def test_candidates(name: str, data: st.DataObject, count: int, seed: int) -> None:
    book = data.draw(CASES[name].codebooks(max_vocab=90))
    k = data.draw(st.integers(1, min(14, len(book))))
    head, features = build(name, book, FLOAT, seed), features_for(count, DIM, FLOAT, seed)
    asked = targets_for(book, 3, seed)
    expected = CASES[name].oracle(head, features).float()
    with torch.no_grad(), Launched() as launched:
        found = head.candidates(features, k, asked)
        best, tokens = head.topk(features, k)
    assert bool(launched) == served(head, count)
    for scores, places in ((found.scores, found.tokens), (best, tokens)):
        torch.testing.assert_close(scores, expected.topk(k).values, **close)
        torch.testing.assert_close(scores, expected.gather(1, places), **close)
        assert all(len(set(row)) == k for row in places.tolist())
    torch.testing.assert_close(found.given, expected[:, asked], **close)


@pytest.mark.slow
@every_searched
@examples(5, phases=PHASES)
@given(data=st.data(), count=counts, width=st.integers(1, 5), seed=seeds)
def test_log_prob_of_each_rows_own_tokens(
    name: str, data: st.DataObject, count: int, width: int, seed: int
) -> None:
    book = data.draw(CASES[name].codebooks(max_vocab=90))
    head, features = build(name, book, FLOAT, seed), features_for(count, DIM, FLOAT, seed)
    tokens = targets_for(book, count * width, seed).view(count, width)
    with torch.no_grad():
        found = head.log_prob_of(features, tokens)
    torch.testing.assert_close(found, CASES[name].oracle(head, features).float().gather(1, tokens), **close)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SEARCHED if name.startswith("cascade")])
@examples(6, phases=PHASES)
@given(data=st.data(), sentences=st.integers(0, 3), beam=st.integers(1, 4), seed=seeds)
def test_beam_candidates(name: str, data: st.DataObject, sentences: int, beam: int, seed: int) -> None:
    """Some tokens are not looked for, some hypotheses are not to be continued."""
    book = data.draw(CASES[name].codebooks(max_vocab=90).filter(lambda book: len(book) > 2))
    without = torch.arange(data.draw(st.integers(0, min(4, len(book) - 2))))
    k = data.draw(st.integers(1, min(10, len(book) - len(without))))
    count = sentences * beam
    head, features = build(name, book, FLOAT, seed), features_for(count, DIM, FLOAT, seed)
    draw = torch.Generator().manual_seed(seed)
    scores = -data.draw(st.sampled_from([0.0, 1.0, 8.0])) * torch.rand(count, generator=draw)
    scores[torch.rand(count, generator=draw) < 0.2] = -torch.inf
    log_probs = CASES[name].oracle(head, features).float()
    with torch.no_grad(), Launched() as launched:
        found, tokens = head.beam_candidates(features, k, scores, beam, without)
    assert bool(launched) == served(head, count)
    there = found != -torch.inf
    assert not torch.isin(tokens, without)[there].any()
    torch.testing.assert_close(found[there], log_probs.gather(1, tokens)[there], **close)
    if sentences:
        log_probs[:, without] = -torch.inf
        everything = (log_probs + scores.unsqueeze(1)).view(sentences, -1)
        best = (found + scores.unsqueeze(1)).view(sentences, -1).topk(k).values
        torch.testing.assert_close(best, everything.topk(k).values, **close)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_half_precision_are_not_rounded(dtype: torch.dtype, tied: bool) -> None:
    from mhe_fairseq.heads.kernels import best_first  # not before the interpreter is switched on

    generator = torch.Generator().manual_seed(3)
    groups, length, dim, beam, k = 7, 21, 40, 2, 5
    slots = torch.randperm(groups * length, generator=generator)[:120]
    names = torch.full((groups * length,), -1, dtype=torch.int32)
    names[slots] = torch.arange(120, dtype=torch.int32)
    x = torch.randn(2 * beam, dim, generator=generator).to(dtype)
    table = torch.randn(120 if tied else groups * length, dim, generator=generator).to(dtype)
    prefixes = torch.randn(2 * beam, groups, generator=generator).log_softmax(dim=-1)
    rows = table.float()
    if tied:
        rows = rows.new_zeros(groups * length, dim).index_put((slots,), table.float())
    logits = (x.float() @ rows.T).masked_fill(names < 0, -torch.inf).view(-1, groups, length)
    expected = (logits.log_softmax(dim=-1) + prefixes.unsqueeze(-1)).flatten(1)[:, slots]
    weight = table if tied else table.view(groups, length, dim)
    scores = torch.zeros(2 * beam)
    found, tokens = torch.empty(2 * beam, k), torch.empty(2 * beam, k, dtype=torch.long)
    best_first.continuations(prefixes, x, weight, names, length, scores, beam, found, tokens, marked=False)
    best = found.view(2, -1).topk(k).values
    torch.testing.assert_close(best, expected.view(2, -1).topk(k).values, atol=1e-5, rtol=1e-6)
    asked = torch.tensor([5, 0, 119])
    given = torch.empty(2 * beam, 3)
    best_first.given(prefixes, x, weight, names, slots, length, asked, given)
    torch.testing.assert_close(given, expected[:, asked], atol=1e-5, rtol=1e-6)


def test_features_that_are_no_numbers_find_nothing() -> None:
    """And leave the other hypotheses of their sentence alone."""
    for name in ("cascade", "mixture"):
        head = build(name, Codebook((6, 9), vocab_size=50), FLOAT, 1)
        features = features_for(4, DIM, FLOAT, 1)
        features[1] = torch.nan
        scores, without = torch.zeros(4), torch.arange(4)
        with torch.no_grad():
            found, tokens = head.beam_candidates(features, 5, scores, 2, without)
            found = found.masked_fill(found.isnan(), -torch.inf)
            assert ((tokens >= 0) & (tokens < 50)).all()
            with plain_torch():
                expected = head.beam_candidates(features, 5, scores, 2, without)[0]
            expected = expected.masked_fill(expected.isnan(), -torch.inf)
        assert (found[1] == -torch.inf).all()
        torch.testing.assert_close(
            found.view(2, -1).topk(5).values, expected.view(2, -1).topk(5).values, **close
        )


def test_few_groups_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a closed group holds is not read: it may be anything."""
    head = build("cascade", Codebook((30, 20)), FLOAT, 1)
    assert isinstance(head, CascadeHead)
    features = features_for(4, DIM, FLOAT, 1)
    with torch.no_grad():
        head.group.bias[3:5] += 50.0
        head.local.table[:3] = torch.nan
        head.local.table[5:] = torch.nan
        found, tokens = head.beam_candidates(features, 10, torch.zeros(4), 2, torch.arange(4))
    assert found.view(2, -1).topk(10).values.isfinite().all()
    assert set(head.codebook.digits(tokens[found.isfinite()])[:, 0].tolist()) <= {3, 4}


def test_ties_and_many_more_tokens_than_a_tile() -> None:
    from mhe_fairseq.heads.kernels.best_tokens import Found, SlotTables, best_tokens

    names, tables = torch.arange(4 * 90, dtype=torch.int32), SlotTables(None, None, torch.arange(4 * 90))
    flat = torch.zeros(2, 3, 4), torch.full((2, 3), -math.log(3)), torch.zeros(2, 3, 90)
    found = Found(torch.empty(2, 20), torch.empty(2, 20, dtype=torch.long), torch.empty(2, 2))
    best_tokens(*flat, names, tables, torch.tensor([0, 359]), found)
    torch.testing.assert_close(found.scores, torch.full((2, 20), -math.log(360)))
    torch.testing.assert_close(found.given, torch.full((2, 2), -math.log(360)))
    assert all(len(set(row)) == 20 for row in found.tokens.tolist())


def test_codebooks_with_too_many_patterns_are_left_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_search_kernels, "MOST_PATTERNS", 1)
    head = build("product", Codebook((6, 9), vocab_size=50), FLOAT, 1)
    with torch.no_grad(), Launched() as launched:
        head.topk(features_for(3, DIM, FLOAT, 1), 5)
    assert not launched


#: Lengths of two and of three digits by a number of tokens, which leaves some slots free.
LENGTHS = {1000: ((25, 41), (10, 10, 11)), 300: ((15, 21), (6, 7, 8))}


def heads_to_count(vocab: int = 1000) -> dict[str, OutputHead]:
    torch.manual_seed(1)
    book, deep = (Codebook(lengths, vocab_size=vocab) for lengths in LENGTHS[vocab])
    embed = torch.nn.Embedding(vocab, 16)
    return {
        "product": ProductHead(16, book),
        "mixture": ProductHead(16, book, mixtures=8),
        "cascade": CascadeHead(16, book),
        "cascade tied": CascadeHead(16, book, tied=embed),
        "cascade 3": CascadeHead(16, deep),
        "cascade prototypes": CascadeHead(16, book, group_prototypes=5),
    }


def operators_of_a_step(heads: list[OutputHead], sentences: int) -> Operators:
    """Of a search with beam 5; no kernel runs, and all find the same tokens."""
    operators = Operators()

    def saw(seen: launch.Launch) -> bool:
        for name, argument in zip(seen.kernel.arg_names, seen.arguments, strict=False):
            if name in WRITTEN[seen.kernel.__name__]:
                argument.numpy().fill(-100.0)
            elif isinstance(argument, Tensor) and argument.dim() == 2 and argument.dtype == torch.long:
                argument.numpy()[:] = range(4, 4 + argument.size(1))
        return operators.saw(seen)

    kind = next(heads[0].parameters()).dtype
    features = [torch.randn(5 * sentences, 16, dtype=kind) for _ in heads]
    step, scores = Step(heads, features, 5, compact=True), -torch.rand(sentences, 5, 1)
    with launch.watched(saw):
        step.run(scores)
        operators.counts.clear()
        with operators:
            step.run(scores)
    return operators


def waits_of(operators: Operators) -> list[str]:
    """Without fairseq's own, which writes one number where a mask says: a GPU is not waited for."""
    return [each for each in operators.found if each != "index_put_"]


@pytest.mark.parametrize("name", heads_to_count())
def test_a_step_has_few_operators_and_none_waits(name: str) -> None:
    """In fp32: half precision has up to two more on a GPU, and on a CPU its weights are converted."""
    head = heads_to_count()[name].eval()
    operators = operators_of_a_step([head], 8)
    assert not waits_of(operators)
    # -inf is copied to a GPU.
    kind, prototypes = name.split(" ")[0], 5 if "prototypes" in name else 1
    counted, stated = operators.total + 1, search_launches(kind, 3 if "3" in name else 2, prototypes)
    assert stated - 2 <= counted <= stated, operators.counts


@pytest.mark.parametrize("name", heads_to_count())
def test_a_step_finds_what_the_wide_one_finds(name: str) -> None:
    head = heads_to_count(300)[name].eval()
    features, scores = 3 * torch.randn(5, 16), -torch.rand(1, 5, 1)
    found = Step([head], [features], 5, compact=True).run(scores)
    expected = Step([head], [features], 5, compact=False).run(scores)
    torch.testing.assert_close(found[0], expected[0], **close)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])


@pytest.mark.slow
def test_an_ensemble_waits_once_a_round() -> None:
    heads = [heads_to_count(300)[name].eval() for name in ("cascade", "mixture")]
    features = [3 * torch.randn(5, 16) for _ in heads]
    scores = -torch.rand(1, 5, 1)
    found = Step(heads, features, 5, compact=True).run(scores)
    expected = Step(heads, features, 5, compact=False).run(scores)
    torch.testing.assert_close(found[0], expected[0], **close)
    assert torch.equal(found[1], expected[1])
    assert waits_of(operators_of_a_step(heads, 8)) == ["_local_scalar_dense"]


def test_heads_ask_for_the_wide_search_where_kernels_do_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = heads_to_count()
    assert all(head.why_wide(5) is None for head in heads.values())
    for head in heads.values():
        head.to("meta")
    with plain_torch():
        reasons = {name: head.why_wide(5) for name, head in heads.items()}
    assert reasons["product"] is None
    assert reasons["cascade"] == "on meta kernels search a CascadeHead, and they cannot be used here"
    assert reasons["mixture"] == "on meta kernels search a mixture, and they cannot be used here"
    with dispatch.pretend():
        assert [head.why_wide(5) for head in heads.values()] == [None] * len(heads)


def _tensor(number: int) -> Tensor:
    return torch.tensor([number])


def test_kept_names_are_of_the_tokens_left_out() -> None:
    """Another tensor of tokens to leave out is another list, however often they change."""
    head = heads_to_count()["cascade"]
    features = torch.randn(2, 16)
    with torch.no_grad():
        best = int(head.topk(features[:1], 1)[1])
        for without in (_tensor(best), _tensor((best + 1) % 1000), _tensor(best)):
            tokens = head.beam_candidates(features[:1], 3, torch.zeros(1), 1, without)[1]
            assert (best in tokens.tolist()[0]) == (int(without) != best)
