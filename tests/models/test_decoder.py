"""The output side of a decoder, without fairseq's layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import ProductHead
from mhe_fairseq.models.decoder import HeadDecoderMixin
from mhe_fairseq.models.target_count import TargetCount
from tests.waits import Waits

VOCAB, DIM, PAD = 30, 5, 1


class Decoder(nn.Module, HeadDecoderMixin):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = ProductHead(DIM, Codebook((5, 7), vocab_size=VOCAB), mixtures=2)


def test_padding_never_counts() -> None:
    decoder, features = Decoder(), torch.randn(2, 3, DIM)
    target = torch.tensor([[4, 5, 2], [6, 2, PAD]])
    loss = decoder.head_loss(features, target, PAD, smoothing=True, accuracy=True)
    assert loss.tokens == 5
    assert loss.nll.shape == loss.smooth.shape == (2, 3)  # type: ignore[union-attr]
    assert loss.nll[1, 2] == 0
    dense = decoder.head.log_probs(features.flatten(0, 1)).view(2, 3, VOCAB)
    expected = -dense.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss.nll[0], expected[0])
    assert loss.stats["accuracy"].dim() == 0


def test_only_padding_gives_zero_and_gradients() -> None:
    decoder = Decoder()
    loss = decoder.head_loss(torch.randn(1, 2, DIM), torch.full((1, 2), PAD), PAD, True, False)
    (loss.nll.sum() + loss.smooth.sum()).backward()  # type: ignore[union-attr]
    assert loss.tokens == 0
    assert all(p.grad is not None and not p.grad.any() for p in decoder.parameters())


def test_the_values_are_those_of_picking_by_a_mask() -> None:
    """Bit for bit, whether features are contiguous or a view of time first."""
    torch.manual_seed(3)
    target = torch.randint(4, VOCAB, (4, 6)).masked_fill(torch.rand(4, 6) < 0.4, PAD)
    keep = target.ne(PAD)
    for is_by_time in (False, True):
        made = torch.randn(6, 4, DIM).transpose(0, 1) if is_by_time else torch.randn(4, 6, DIM)
        results = []
        for is_old in (False, True):
            decoder, features = Decoder().eval(), made.detach().clone().requires_grad_()
            assert features.is_contiguous() is not is_by_time
            if is_old:
                loss = decoder.head(features[keep], target[keep])
                nll, smooth = (
                    torch.zeros(4, 6).masked_scatter(keep, part) for part in (loss.nll, loss.smooth)
                )
            else:
                found = decoder.head_loss(features, target, PAD, True, False)
                nll, smooth = found.nll, found.smooth  # type: ignore[assignment]
            (nll.sum() + 0.1 * smooth.sum()).backward()
            results.append([nll, smooth, features.grad, *(p.grad for p in decoder.parameters())])
        for mine, theirs in zip(*results, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_batches_without_room(shape: tuple[int, int]) -> None:
    decoder, target = Decoder(), torch.full(shape, PAD + 1)
    for features in (torch.randn(*shape, DIM), torch.randn(*shape[::-1], DIM).transpose(0, 1)):
        loss = decoder.head_loss(features, target, PAD, True, True)
        (loss.nll.sum() + loss.smooth.sum()).backward()  # type: ignore[union-attr]
        assert loss.nll.shape == shape and loss.tokens == target.numel()
        assert all(p.grad is not None for p in decoder.parameters())


def test_an_accelerator_is_not_waited_for() -> None:
    decoder, features = Decoder(), torch.randn(2, 3, DIM, requires_grad=True)
    target = torch.tensor([[4, 5, 2], [6, PAD, PAD]])
    count = TargetCount(target, PAD)
    with Waits() as waits:
        loss = decoder.head_loss(features, target, PAD, True, False, count)
        (loss.nll.sum() + loss.smooth.sum()).backward()  # type: ignore[union-attr]
    assert waits.found == []
    with Waits() as waits:
        decoder.head_loss(features, target, PAD, True, False)
    assert waits.found == ["_local_scalar_dense"], "without a count made before there is one wait"
    with Waits() as waits:
        features[target.ne(PAD)]
    assert waits.found, "what picked the tokens before would"


def test_a_count_of_other_targets_is_not_used() -> None:
    decoder, features = Decoder(), torch.randn(2, 3, DIM)
    target = torch.tensor([[4, 5, 2], [6, PAD, PAD]])
    expected = decoder.head_loss(features, target, PAD, False, False).nll
    stale = target.clone()
    changed = TargetCount(stale, PAD)
    stale[0, 0] = PAD
    for count, given in (
        (TargetCount(torch.full_like(target, PAD), PAD), target),
        (TargetCount(target[:1], PAD), target),
        (TargetCount(target, 4), target),
        (changed, stale),
    ):
        loss = decoder.head_loss(features, given, PAD, False, False, count)
        assert torch.equal(loss.nll, decoder.head_loss(features, given, PAD, False, False).nll)
        # Of fewer tokens at once: a product of other shapes may round otherwise.
        torch.testing.assert_close(loss.nll, expected * given.ne(PAD))
        assert loss.tokens == given.ne(PAD).sum()


def test_probabilities_and_a_samples_target() -> None:
    decoder, features = Decoder().eval(), torch.randn(2, 3, DIM)
    target = torch.randint(VOCAB, (2, 3))
    with torch.no_grad():
        wide = decoder.get_normalized_probs((features, None), log_probs=True)
        torch.testing.assert_close(
            decoder.get_normalized_probs((features, None), log_probs=False), wide.exp()
        )
        scored = decoder.get_normalized_probs((features, None), True, {"target": target})
    assert wide.shape == scored.shape == (2, 3, VOCAB)
    # The scorer's tensor is V columns of one number: N numbers in memory.
    assert scored.untyped_storage().nbytes() == 2 * 3 * 4
    index = target.unsqueeze(-1)
    torch.testing.assert_close(scored.gather(-1, index), wide.gather(-1, index))


class OtherTensor(torch.Tensor):
    pass


@pytest.mark.parametrize("kind", [torch.Tensor, OtherTensor])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_a_temperature_is_of_the_probabilities(temperature: float, kind: type[torch.Tensor]) -> None:
    """fairseq divides what a decoder gives while decoding."""
    decoder, features = Decoder().eval(), torch.randn(4, 3, DIM).as_subclass(kind)
    with torch.no_grad(), Waits() as waits:
        expected = decoder.get_normalized_probs((features[:, -1:], None), True)
        divided = decoder.decoding(features.clone())[:, -1:, :].div_(temperature)
        actual = decoder.get_normalized_probs((divided, None), True)
    assert type(actual) is kind and "_local_scalar_dense" not in waits.found
    torch.testing.assert_close(
        actual, torch.log_softmax(expected / temperature, dim=-1), atol=1e-5, rtol=1e-5
    )
