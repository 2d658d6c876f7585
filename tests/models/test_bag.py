"""A bag of embeddings: which rows a document reads."""

from __future__ import annotations

import torch

from mhe_fairseq.models.bag import BagOfEmbeddings

PAD, BOS, EOS = 1, 0, 2


def bag(buckets: int = 7, layers: int = 2) -> BagOfEmbeddings:
    torch.manual_seed(1)
    return BagOfEmbeddings(
        tokens=20,
        first=4,
        padding=PAD,
        buckets=buckets,
        dim=5,
        width=6 if layers else 5,
        layers=layers,
        dropout=0.5,
    ).eval()


def test_every_token_and_pair_counts_once() -> None:
    model = bag()
    tokens = torch.tensor([[BOS, 5, 6, 5, 6, EOS], [BOS, 9, EOS, PAD, PAD, PAD]])
    numbers, counts = model.numbers(tokens)
    pairs = {(a * 1_000_003 + b * 7_919) % 7 + 20 for a, b in [(5, 6), (6, 5)]}
    first = numbers[: counts[0]].tolist()
    assert sorted(first) == sorted({5, 6} | pairs)
    assert numbers[counts[0] :].tolist() == [9]


def test_padding_and_order_without_pairs_do_not_matter() -> None:
    model = bag(buckets=0)
    one = model(torch.tensor([[BOS, 5, 6, 7, EOS]]))
    other = model(torch.tensor([[BOS, 7, 5, 6, EOS, PAD, PAD], [BOS, 8, EOS, PAD, PAD, PAD, PAD]]))
    torch.testing.assert_close(one[0], other[0])
    assert not torch.equal(other[0], other[1])
    # Rows are a fifth of what they count.
    total = 5 * model.rows.detach()[[5, 6, 7]].sum(0, keepdim=True) / 3**0.5
    torch.testing.assert_close(one, torch.relu(model.layers[1](torch.relu(model.layers[0](total)))))


def test_without_layers_features_are_the_sum() -> None:
    model = bag(buckets=0, layers=0)
    features = model(torch.tensor([[BOS, 5, 6, 5, 8, 9, EOS]]))
    torch.testing.assert_close(features, 5 * model.rows[[5, 6, 8, 9]].sum(0, keepdim=True) / 2)


def test_a_document_without_words_has_features() -> None:
    model = bag()
    features = model(torch.tensor([[BOS, EOS], [BOS, 5]]))
    assert features.shape == (2, 6) and features.isfinite().all()
    model.train()(torch.tensor([[BOS, EOS]])).sum().backward()
    assert model.rows.grad is not None and not model.rows.grad.any()
