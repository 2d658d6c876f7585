"""ProductHead: its smoothing term and its statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.bench.memory import measure_peak
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import ProductHead
from mhe_fairseq.heads.product.head import SMOOTHING_TOKENS
from tests.heads.oracle import codebooks, features_for, product_oracle

DIM = 6


def build(
    book: Codebook, mixtures: int = 1, dtype: torch.dtype = torch.float64, seed: int = 1
) -> ProductHead:
    torch.manual_seed(seed)
    head = ProductHead(DIM, book, mixtures)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return head.to(dtype)


def targets_for(book: Codebook, count: int, seed: int = 0) -> Tensor:
    return torch.randint(len(book), (count,), generator=torch.Generator().manual_seed(seed))


@given(book=codebooks(max_vocab=600), seed=st.integers(0, 99), training=st.booleans())
def test_smoothing_of_one_component_is_the_exact_mean(book: Codebook, seed: int, training: bool) -> None:
    features, target = features_for(5, DIM, torch.float32, seed), targets_for(book, 5, seed)
    head = build(book, dtype=torch.float32, seed=seed).train(training)
    expected = -product_oracle(head, features).mean(dim=-1)
    smooth = head(features, target).smooth
    assert smooth.dtype == torch.float32
    torch.testing.assert_close(smooth.double(), expected, atol=2e-5, rtol=2e-6)
    torch.testing.assert_close(smooth, -head.log_probs(features).mean(dim=-1), atol=2e-5, rtol=2e-6)


def test_smoothing_in_float64_is_as_exact_as_float64() -> None:
    book = Codebook((7, 9), torch.randperm(63, generator=torch.Generator().manual_seed(3))[:53])
    head, features = build(book), features_for(5, DIM, torch.float64, 0)
    expected = -product_oracle(head, features).mean(dim=-1)
    actual = head(features, targets_for(book, 5)).smooth
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smoothing_in_half_precision_loses_nothing_after_the_logits(dtype: torch.dtype) -> None:
    """The logits are rounded; what is done with them is fp32. A bias that a soft-max ignores shows it."""
    book = Codebook((7, 9), torch.randperm(63, generator=torch.Generator().manual_seed(3))[:53])
    head, features = build(book), features_for(5, DIM, dtype, 0)
    with torch.no_grad():
        head.bias.add_(16.0)
    head = head.to(dtype)
    expected = -head.log_probs(features).mean(dim=-1)
    actual = head(features, targets_for(book, 5)).smooth
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mixtures", [2, 4])
@pytest.mark.parametrize("training", [True, False])
@given(book=codebooks(max_vocab=SMOOTHING_TOKENS), seed=st.integers(0, 99))
def test_a_small_vocabulary_is_drawn_whole(mixtures: int, training: bool, book: Codebook, seed: int) -> None:
    head = build(book, mixtures, seed=seed).train(training)
    drawn = head._sample_tokens(len(book), torch.device("cpu"))
    assert drawn.tolist() == list(range(len(book)))
    features = features_for(4, DIM, torch.float64, seed)
    expected = -product_oracle(head, features).mean(dim=-1)
    actual = head(features, targets_for(book, 4, seed)).smooth
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("book", [Codebook((12, 13), vocab_size=150), Codebook((6, 5, 5))], ids=repr)
def test_the_sampled_smoothing_is_unbiased(book: Codebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is the mean of the drawn tokens' terms; with every token drawn once it is exact."""
    head = build(book, mixtures=3).train()
    features, target = features_for(4, DIM, torch.float64, 0), targets_for(book, 4)
    exact = -product_oracle(head, features).mean(dim=-1)
    counts, estimates = [], []
    for token in range(len(book)):

        def only(count: int, device: torch.device, token: int = token) -> Tensor:
            counts.append(count)
            return torch.tensor([token], device=device)

        monkeypatch.setattr(head, "_sample_tokens", only)
        estimates.append(head(features, target).smooth.detach())
    torch.testing.assert_close(torch.stack(estimates).mean(dim=0), exact, atol=1e-9, rtol=1e-9)
    assert set(counts) == {SMOOTHING_TOKENS}
    assert not torch.allclose(estimates[0], estimates[1])


def test_every_token_is_drawn_equally_often() -> None:
    vocab, draws = 150, 3000
    head = build(Codebook((12, 13), vocab_size=vocab), mixtures=2).train()
    count = torch.zeros(vocab)
    for update in range(draws):
        head.set_num_updates(update)
        tokens = head._sample_tokens(SMOOTHING_TOKENS, torch.device("cpu"))
        assert len(tokens) == SMOOTHING_TOKENS
        count += torch.bincount(tokens, minlength=vocab)
    expected = draws * SMOOTHING_TOKENS / vocab  # the deviation is at most sqrt(expected)
    assert float((count - expected).abs().max()) < 5 * expected**0.5


def test_the_sample_depends_on_the_update_only() -> None:
    book = Codebook((20, 20), vocab_size=390)
    head = build(book, mixtures=3).train()
    features, target = features_for(4, DIM, torch.float64, 0), targets_for(book, 4)

    def smooth(update: int | None) -> list[float]:
        if update is not None:
            head.set_num_updates(update)
        values: list[float] = head(features, target).smooth.tolist()
        return values

    first, second = smooth(None), smooth(None)
    assert first != second, "two draws of the global generator"
    third = smooth(3)
    state = torch.get_rng_state()
    assert smooth(3) == third and smooth(None) == third
    assert smooth(4) != third
    assert smooth(3) == third
    assert torch.equal(torch.get_rng_state(), state), "a numbered update leaves the global generator alone"
    head.eval()
    evaluated = smooth(3)
    assert smooth(8) == evaluated and smooth(None) == evaluated


@pytest.mark.parametrize("mixtures", [1, 6])
@pytest.mark.parametrize("vocab", [60_000, 59_970])
def test_a_step_takes_little_more_than_logits_and_their_gradient(mixtures: int, vocab: int) -> None:
    head = ProductHead(8, Codebook((240, 250), vocab_size=vocab), mixtures)
    count = 6144 // mixtures
    features, target = torch.randn(count, 8), torch.randint(vocab, (count,))

    def loss() -> Tensor:
        loss = head(features, target)
        assert loss.smooth is not None
        return loss.nll.sum() + loss.smooth.sum()

    peak = measure_peak(loss, list(head.parameters()))
    logits = count * mixtures * 490 * 4
    # One component's exact smoothing is outside of the one gradient; a mixture's tokens have logits of
    # their own, 64 beside 490.
    assert peak.extra < (3.2 if mixtures == 1 else 2.4) * logits


def test_no_smoothing_unless_asked() -> None:
    book = Codebook((4, 5), vocab_size=18)
    for mixtures in (1, 2):
        loss = build(book, mixtures)(
            features_for(2, DIM, torch.float64, 0), torch.tensor([0, 3]), smoothing=False
        )
        assert loss.smooth is None


@pytest.mark.parametrize("lengths", [(30,), (5, 6), (2, 3, 5)])
def test_digit_losses_of_one_component_sum_to_the_loss(lengths: tuple[int, ...]) -> None:
    features = features_for(6, DIM, torch.float64, 0)
    for vocab in (30, 23):
        book = Codebook(lengths, vocab_size=vocab)
        head, target = build(book), targets_for(book, 6)
        loss = head(features, target)
        assert list(loss.stats) == [f"digit_{h + 1}_nll" for h in range(len(lengths))]
        total = torch.stack(list(loss.stats.values())).sum(dim=0)
        assert not total.requires_grad
        if vocab == 30:
            torch.testing.assert_close(total, loss.nll)
        else:  # renormalised over the real tokens, which can only help
            assert bool((total > loss.nll).all())
            log_mass = head._scores(features).log_mass(head.lattice)
            torch.testing.assert_close(total + log_mass, loss.nll)


@pytest.mark.parametrize("mixtures", [1, 3])
def test_digit_losses_and_accuracies_are_those_of_the_marginals(mixtures: int) -> None:
    book = Codebook((3, 4, 5), torch.randperm(60, generator=torch.Generator().manual_seed(0)))
    head, features, target = (
        build(book, mixtures),
        features_for(9, DIM, torch.float64, 0),
        targets_for(book, 9),
    )
    table = torch.empty(9, 60, dtype=torch.float64)
    table[:, book.slots] = product_oracle(head, features).exp().detach()
    table = table.view(9, 3, 4, 5)
    stats, digits = head(features, target, accuracy=True).stats, book.digits(target)
    for h in range(3):
        marginal = table.sum(dim=[1 + other for other in range(3) if other != h])
        expected = -marginal.log().gather(-1, digits[:, h : h + 1]).squeeze(-1)
        torch.testing.assert_close(stats[f"digit_{h + 1}_nll"], expected)
        right = marginal.argmax(dim=-1).eq(digits[:, h]).double()
        assert stats[f"digit_{h + 1}_accuracy"].tolist() == right.tolist()


def test_parameters_are_rows_of_the_digits_and_a_gate() -> None:
    book = Codebook((4, 5), vocab_size=18)
    assert build(book).output_parameters() == 9 * (DIM + 1)
    assert build(book, 3).output_parameters() == 3 * 9 * (DIM + 1) + 3 * (DIM + 1)
    assert set(build(book).state_dict()) == {"weight", "bias", "codebook_slots", "codebook_lengths"}


@pytest.mark.parametrize("mixtures", [0, -2])
def test_no_mixture_component_is_refused(mixtures: int) -> None:
    with pytest.raises(MHEError) as caught:
        ProductHead(DIM, Codebook((3, 4)), mixtures=mixtures)
    assert str(caught.value) == (
        f"a product head needs at least 1 mixture component, got mixtures={mixtures}"
    )


def test_no_dimension_is_refused() -> None:
    with pytest.raises(MHEError, match="a head needs features of at least 1 dimension, got 0"):
        ProductHead(0, Codebook((3, 4)))
