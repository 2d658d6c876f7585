"""Slots for tokens: balanced whatever the order, and clusters that find what text says."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook
from mhe_fairseq.coding.assign import (
    Ints,
    balanced_sizes,
    bisect,
    cluster_slots,
    context_vectors,
    count_pairs,
    count_tokens,
    embedding_vectors,
    frequency_slots,
    order_slots,
    ppmi,
    random_slots,
    truncated_svd,
)
from mhe_fairseq.errors import MHEError
from tests.helpers import REPO, command_env


@st.composite
def sizes_and_lengths(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    vocab = draw(st.integers(1, 400))
    lengths = draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
    lengths.append(math.ceil(vocab / math.prod(lengths)) + draw(st.integers(0, 3)))
    return vocab, tuple(lengths)


def text_of_classes(classes: int, words: int, sentences: int, seed: int = 0) -> Ints:
    """Sentences ``class 0 word, class 1 word, ...``, then token 2, the end; token 4 + c + classes * w is
    word w of class c, low w frequent."""
    rng = np.random.default_rng(seed)
    weights = 1 / (np.arange(words) + 1.0)
    word = rng.choice(words, size=(sentences, classes), p=weights / weights.sum())
    tokens = 4 + np.arange(classes) + classes * word
    ends = np.full((sentences, 1), 2)
    text: Ints = np.concatenate([tokens, ends], axis=1).ravel()
    return text


# ---- layout


@given(case=sizes_and_lengths(), seed=st.integers(0, 99))
def test_groups_of_every_level_are_balanced(case: tuple[int, tuple[int, ...]], seed: int) -> None:
    vocab, lengths = case
    order = np.random.default_rng(seed).permutation(vocab)
    book = Codebook(lengths, order_slots(order, lengths))  # checks range and that none is shared
    tokens = torch.arange(vocab)
    for level in range(1, len(lengths)):
        above = book.slots // math.prod(lengths[level - 1 :])
        group = book.slots // math.prod(lengths[level:])
        for parent in above.unique():
            children = group[above == parent]
            sizes = torch.bincount(children - int(parent) * lengths[level - 1], minlength=lengths[level - 1])
            assert int(sizes.max()) - int(sizes.min()) <= 1
            assert sizes.tolist() == balanced_sizes(len(children), lengths[level - 1])
    # In a group the tokens are in order, without gaps.
    in_order = book.slots[torch.from_numpy(order)]
    assert bool((in_order.diff() > 0).all())
    last = torch.bincount(book.slots // lengths[-1], minlength=book.size // lengths[-1])
    assert bool((book.digits(tokens)[:, -1] < last[book.slots // lengths[-1]]).all())


def test_frequency_is_dictionary_order() -> None:
    assert frequency_slots(12, (3, 4)).tolist() == list(range(12))
    # One hole each for the last groups, none empty.
    assert frequency_slots(7, (3, 4)).tolist() == [0, 1, 2, 4, 5, 8, 9]
    assert frequency_slots(5, (2, 2, 2)).tolist() == [0, 1, 2, 4, 6]


def test_random_is_of_its_seed() -> None:
    one, again, other = (random_slots(100, (8, 16), seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert sorted(one.tolist()) == sorted(frequency_slots(100, (8, 16)).tolist())


def test_too_few_slots_are_refused() -> None:
    for make in (frequency_slots, random_slots):
        with pytest.raises(MHEError, match="give 12 slots for 13 tokens"):
            make(13, (3, 4))


# ---- counting


def pieces(text: Ints, size: int) -> list[Ints]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_counts_do_not_depend_on_the_pieces(size: int) -> None:
    text = text_of_classes(3, 5, 40)
    counts = count_tokens(pieces(text, size), 30)
    assert counts.tolist() == [int((text == token).sum()) for token in range(30)]
    contexts = 6
    pairs = count_pairs(pieces(text, size), counts, contexts).toarray()
    best = np.argsort(-counts, kind="stable")[:contexts]
    expected = np.zeros((30, 2 * contexts), dtype=int)
    for left, right in zip(text[:-1], text[1:], strict=True):
        if left in best:
            expected[right, list(best).index(left)] += 1
        if right in best:
            expected[left, contexts + list(best).index(right)] += 1
    assert (pairs == expected).all()


def test_a_token_of_another_dictionary_is_refused() -> None:
    with pytest.raises(MHEError, match=r"the data has token 30, the dictionary has 0\.\.29 only"):
        count_tokens([np.array([3, 30, 4])], 30)
    with pytest.raises(MHEError, match="the data has token -1"):
        count_tokens([np.array([3, -1, 4])], 30)


def test_pairs_are_bounded_by_forgetting_the_rare() -> None:
    text = text_of_classes(4, 50, 500)
    counts = count_tokens([text], 204)
    everything = count_pairs([text], counts, 204).toarray()
    bounded = count_pairs(pieces(text, 300), counts, 204, max_pairs=100)
    assert bounded.nnz <= 100 < (everything > 0).sum()
    # What is left is frequent, and never counted too often.
    kept = bounded.toarray()
    assert (kept <= everything).all()
    assert everything[kept > 0].min() >= np.median(everything[everything > 0])


def test_ppmi_by_hand() -> None:
    from scipy.sparse import csr_matrix

    # One side of two contexts, the other side empty.
    pairs = csr_matrix(np.array([[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0]], dtype=np.int32))
    result = ppmi(pairs, smoothing=1.0).toarray()
    expected = [math.log(3 * 8 / (4 * 3)), 0.0], [0.0, math.log(4 * 8 / (4 * 5))]
    np.testing.assert_allclose(result[:2, :2], expected, rtol=1e-6)
    assert not result[2].any() and not result[:, 2:].any()


def test_truncated_svd_is_the_singular_vectors() -> None:
    rng = np.random.default_rng(0)
    spectrum = 0.5 ** np.arange(12)
    left, right = (np.linalg.qr(rng.standard_normal((40, 12)))[0] for _ in range(2))
    matrix = (left * spectrum @ right.T).astype(np.float32)
    vectors = truncated_svd(matrix, 5, seed=3)
    assert vectors.shape == (40, 5) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, left[:, :5] * spectrum[:5] @ left[:, :5].T, atol=1e-3)
    np.testing.assert_array_equal(vectors, truncated_svd(matrix, 5, seed=3))
    assert truncated_svd(matrix[:3], 5).shape == (3, 3)


# ---- clusters


def test_clusters_find_the_classes_of_words() -> None:
    classes, words = 8, 30
    text = text_of_classes(classes, words, 4000)
    counts = count_tokens([text], 4 + classes * words)
    vectors = context_vectors(pieces(text, 999), counts, dim=16)
    assert (vectors.any(axis=1) == (counts > 0)).all()
    slots = cluster_slots(vectors, (classes, words + 1), counts)
    book = Codebook((classes, words + 1), slots)
    seen = torch.from_numpy(np.flatnonzero(counts))[1:]  # without the end
    group, truth = book.digits(seen)[:, 0], (seen - 4) % classes
    # Every class mostly in one group. The end of sentence and rare words must go somewhere.
    table = torch.bincount(group * classes + truth, minlength=classes**2).view(classes, classes)
    assert int(table.max(dim=1).values.sum()) / len(seen) > 0.9
    # Inside a group by frequency.
    for row in book.token_of_slot.view(classes, -1):
        in_row = counts[row[row >= 0].numpy()]
        assert (np.diff(in_row) <= 0).all()


def test_three_lengths_divide_the_clusters_again() -> None:
    rng = np.random.default_rng(0)
    centres, fine = rng.standard_normal((4, 8)) * 10, rng.standard_normal((2, 8)) * 3
    which = rng.permutation(np.arange(80) % 8)
    vectors = centres[which // 2] + fine[which % 2] + 0.1 * rng.standard_normal((80, 8))
    book = Codebook((4, 2, 10), cluster_slots(vectors.astype(np.float32), (4, 2, 10)))
    digits = book.digits(torch.arange(80))
    leaf = digits[:, 0] * 2 + digits[:, 1]
    for group in range(8):
        assert len(set(which[(leaf == group).numpy()])) == 1
    for group in range(4):
        assert len(set(which[(digits[:, 0] == group).numpy()] // 2)) == 1


def test_same_input_same_slots() -> None:
    text = text_of_classes(5, 20, 500)
    counts = count_tokens([text], 110)
    runs = [
        cluster_slots(context_vectors([text], counts, dim=8, seed=seed), (8, 16), counts) for seed in (1, 1)
    ]
    assert torch.equal(*runs)


def test_tokens_without_a_vector_are_dealt_out_evenly() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 4)).astype(np.float32)
    unknown = rng.permutation(60)[:24]
    vectors[unknown] = 0
    counts = np.arange(60, 0, -1)
    counts[unknown] = 0
    book = Codebook((6, 12), cluster_slots(vectors, (6, 12), counts))
    digits = book.digits(torch.from_numpy(unknown))
    assert torch.bincount(digits[:, 0], minlength=6).tolist() == [4] * 6
    # They are the rarest, so they come last in their group.
    assert int(digits[:, 1].min()) == 6


@given(
    vocab=st.integers(1, 60),
    first=st.integers(1, 9),
    dim=st.integers(1, 4),
    seed=st.integers(0, 99),
    same=st.booleans(),
)
def test_clusters_of_anything_are_balanced(vocab: int, first: int, dim: int, seed: int, same: bool) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((vocab, dim)).astype(np.float32)
    if same:
        vectors[:] = vectors[0]
    lengths = (first, math.ceil(vocab / first))
    book = Codebook(lengths, cluster_slots(vectors, lengths, rng.integers(0, 5, vocab)))
    sizes = torch.bincount(book.slots // lengths[1], minlength=first)
    assert sizes.tolist() == balanced_sizes(vocab, first)


def test_bisection_keeps_sizes_and_members() -> None:
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((50, 3)).astype(np.float32)
    members = np.arange(5, 45)
    clusters = list(bisect(unit, members, [11, 10, 10, 9], np.ones(50, dtype=np.int64)))
    assert [len(cluster) for cluster in clusters] == [11, 10, 10, 9]
    assert sorted(np.concatenate(clusters).tolist()) == members.tolist()


def test_an_embedding_gives_clusters_of_its_directions() -> None:
    torch.manual_seed(0)
    # What all tokens share hides nothing: the mean is taken away.
    centres = torch.randn(4, 32)
    which = torch.arange(64) % 4
    embedding = centres[which] + 0.1 * torch.randn(64, 32) + 100.0
    book = Codebook((4, 16), cluster_slots(embedding_vectors(embedding.bfloat16().float()), (4, 16)))
    first = book.digits(torch.arange(64))[:, 0]
    for group in range(4):
        assert which[first == group].unique().numel() == 1


def test_progress_is_told() -> None:
    calls: list[tuple[str, int, int]] = []
    text = text_of_classes(4, 6, 50)
    parts = pieces(text, 100)

    def note(stage: str, done: int, total: int) -> None:
        calls.append((stage, done, total))

    counts = count_tokens(parts, 28, note, len(text))
    cluster_slots(context_vectors(parts, counts, dim=4, progress=note), (4, 7), counts, note)
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == [
        "counting tokens",
        "counting pairs",
        "SVD",
        "bisection",
    ]
    for stage in dict.fromkeys(stage for stage, _, _ in calls):
        done = [d for s, d, _ in calls if s == stage]
        assert done == sorted(done)
        assert [(d, t) for s, d, t in calls if s == stage][-1] == (max(done), max(done))


# ---- bad input


def test_bad_vectors_and_counts() -> None:
    vectors = np.ones((12, 3), dtype=np.float32)
    with pytest.raises(MHEError, match="at least two lengths such as 128,256; got 12"):
        cluster_slots(vectors, (12,))
    with pytest.raises(MHEError, match="give 6 slots for 12 tokens"):
        cluster_slots(vectors, (2, 3))
    with pytest.raises(MHEError, match="counts for 11 tokens were given with vectors for 12"):
        cluster_slots(vectors, (3, 4), np.ones(11, dtype=np.int64))
    vectors[7, 1] = np.nan
    with pytest.raises(MHEError, match="vector of token 7 has NaN"):
        cluster_slots(vectors, (3, 4))
    with pytest.raises(MHEError, match=r"V x d matrix, got shape \(3,\)"):
        embedding_vectors(torch.ones(3))
    with pytest.raises(MHEError, match="the embedding has NaN"):
        embedding_vectors(torch.full((3, 2), torch.inf))


@pytest.mark.slow
def test_coding_imports_neither_fairseq_nor_scipy() -> None:
    code = (
        "import sys, mhe_fairseq.errors; sys.modules['fairseq'] = None; sys.modules['scipy'] = None\n"
        "import mhe_fairseq.coding.assign as a; print(a.frequency_slots(4, (2, 2)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, env=command_env(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[0, 1, 2, 3]"
