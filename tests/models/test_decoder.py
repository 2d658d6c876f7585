"""The output side of a decoder, without fairseq's layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import ProductHead
from mhe_fairseq.models.decoder import HeadDecoderMixin

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


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_a_divided_probe_column_is_a_temperature(temperature: float) -> None:
    decoder, features = Decoder().eval(), torch.randn(4, 1, DIM)
    probe = torch.cat([features, torch.ones(4, 1, 1)], dim=-1)
    with torch.no_grad():
        expected = decoder.get_normalized_probs((features, None), True)
        actual = decoder.get_normalized_probs((probe.div_(temperature), None), True)
    torch.testing.assert_close(
        actual, torch.log_softmax(expected / temperature, dim=-1), atol=1e-5, rtol=1e-5
    )
