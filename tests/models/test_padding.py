"""Padding is asked for once, and the encoder is fairseq's to the bit."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.models import build_model
from fairseq.models.transformer import TransformerEncoder, TransformerEncoderBase
from torch import Tensor, nn

from mhe_fairseq.models.padding import MHESentenceEncoder, MHETransformerEncoder, ask
from scripts.gpu.update_waits import Watch
from tests.models import test_roberta, test_transformer_lm

PAD = 1
LAYERS = 3


def translator() -> Any:
    words = test_transformer_lm.words()
    args = Namespace(
        arch="mhe_transformer_tiny", mhe_head="product", mhe_lengths="5,10", encoder_layers=LAYERS,
        decoder_layers=LAYERS, encoder_normalize_before=True, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return build_model(args, SimpleNamespace(source_dictionary=words, target_dictionary=words))


def tokens(*lengths: int, seed: int = 0) -> Tensor:
    """Shape: (B, the longest)."""
    made = torch.randint(4, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    for row, length in zip(made, lengths, strict=True):
        row[length:] = PAD
    return made


def numbers(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    values = nested.values() if isinstance(nested, dict) else nested or []
    return [number for each in values for number in numbers(each)]


@pytest.mark.parametrize("lengths", [(5, 3, 1), (4, 4)])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("kind", ["translation", "masked"])
def test_the_encoder_is_fairseqs(kind: str, states: bool, lengths: tuple[int, ...]) -> None:
    if kind == "translation":
        encoder, ours, theirs = translator().encoder, MHETransformerEncoder, TransformerEncoderBase
    else:
        encoder = test_roberta.build(mhe_head="cascade").encoder.sentence_encoder
        ours, theirs = MHESentenceEncoder, TransformerEncoder
    assert type(encoder) is ours and issubclass(ours, theirs)
    source, found = tokens(*lengths), []
    for forward in (ours.forward_scriptable, theirs.forward_scriptable):
        encoder.zero_grad()
        torch.manual_seed(1)
        out = forward(encoder, source, None, states)
        out["encoder_out"][0].square().sum().backward()
        found.append((list(out), numbers(out), [each.grad for each in encoder.parameters()]))
    (keys, values, grads), (their_keys, their_values, their_grads) = found
    assert keys == their_keys and len(values) == len(their_values)
    assert all(torch.equal(one, other) for one, other in zip(values, their_values, strict=True))
    for one, other in zip(grads, their_grads, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("source", [(5, 3), (4, 4)])
@pytest.mark.parametrize("target", [(6, 2), (3, 3)])
def test_an_update_asks_once(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    model, given, made = translator().train(), tokens(*source), tokens(*target, seed=1)
    stock = translator().train()
    stock.encoder.__class__ = TransformerEncoderBase
    watch = Watch()
    watch.begin(SimpleNamespace(model=model, criterion=nn.Module(), optimizer=None))
    watch.batch((given, made))
    watch.noting = True
    features, _ = model(given, given.ne(PAD).sum(1), made)
    watch.end()
    asked = sorted(each.place.partition(":")[0].rpartition("/")[2] for each in watch.waits(1))
    # fairseq's decoder has no way to be told that there is none.
    assert asked == ["padding.py"] + ["transformer_decoder.py"] * (PAD not in made)
    assert model.encoder.padded is None and model.decoder.padded is None
    assert not model.decoder.cross_self_attention
    expected, _ = stock.decoder(made, encoder_out=stock.encoder(given, given.ne(PAD).sum(1)))
    assert torch.equal(features, expected)


def test_an_answer_is_of_its_tokens_only() -> None:
    first, other = tokens(3, 1), tokens(2, 2)
    padded, whole = ask((first, PAD), (other, PAD))
    assert padded.of(first) is True and padded.of(first.clone()) is None
    assert whole.of(other) is False and whole.of(first) is None


def test_an_error_in_the_forward_leaves_nothing_behind() -> None:
    model = translator()
    with pytest.raises(IndexError):
        model(tokens(3, 2), None, torch.full((2, 3), 99))
    assert model.encoder.padded is None and model.decoder.padded is None
    assert not model.decoder.cross_self_attention
