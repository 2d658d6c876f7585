"""What `mhe convert` does: measure the model, make a codebook, fit what is new, measure what came out."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.bench.machine import find_device
from mhe_fairseq.cli.analyze_data import Subset, check_folders
from mhe_fairseq.cli.analyze_model import LoadedModel, least_positions
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.checkpoint import read_checkpoint
from mhe_fairseq.cli.convert_codebook import codebook_for
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.convert import NewHead, converted
from mhe_fairseq.models.convertible import (
    Kind,
    OutputLayer,
    as_saved,
    fitted_layer,
    kind_of,
    output_layer,
)
from mhe_fairseq.models.fit_groups import Fitted, Softmax, first_tokens, fit, gather
from mhe_fairseq.models.fit_softmax import FittedRows, fit_rows
from mhe_fairseq.models.roberta import with_one

#: Tokens of a batch whose features are computed; a longer sentence is a batch by itself.
_BATCH = 4096

#: Sentences that are put by length.
_PART = 512

#: Rows of a group head for a group, where it is not told: what they cost in loss is in docs/convert.md.
DEFAULT_PROTOTYPES = 8


@dataclass(frozen=True)
class Loss:
    """Of a model on text.

    Attributes:
        nats: mean of -log p(token).
        tokens: how many there were.
    """

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)


@dataclass(frozen=True)
class Done:
    """A conversion, before it is written.

    Attributes:
        state: the checkpoint, its ``cfg`` a config.
        kind: of what it was made of.
        rate: the learning rate that its training ended with; None: not known.
        vocab_size, tied: V; the rows of tokens are the embedding's.
        codebook: of the new head.
        codebook_is_new: it was made here.
        prototypes: m of a cascade.
        fitted: its group head; None: no cascade.
        rows: of a softmax that was fitted to another head; None: the table was there.
        tokens: either was fitted on.
        seconds: the fit took.
        before, after: losses on the validation text.
    """

    state: dict[str, Any]
    kind: Kind
    rate: float | None
    vocab_size: int
    tied: bool
    codebook: Codebook
    codebook_is_new: bool
    prototypes: int
    fitted: Fitted | None
    rows: FittedRows | None
    tokens: int
    seconds: float
    before: Loss
    after: Loss


def convert(args: argparse.Namespace, source: Path, output: Path, bars: Bars) -> Done:
    """Convert the checkpoint ``source``.

    Raises:
        MHEError: as `mhe convert`.
    """
    device = find_device(args.device)
    check_folders(args.data)
    state = read_checkpoint(source)
    saved, rate = state["model"], last_rate(state)
    name = f"checkpoint {source}"
    kind = kind_of(state["cfg"], name, args.head)
    model = LoadedModel(source, args.data, device, purpose="convert")
    valid = Subset(model.task, args.data, "valid")
    before = loss_of(model, valid, args.tokens, bars, "loss before")
    if kind.head is None:  # ours knows its dictionary
        _check_is_trained(before, len(model.symbols()), name, args.data)
    codebook, is_new = codebook_for(args, model, _shares_sides(state["cfg"].model), bars)
    fitted, rows, tokens, prototypes = None, None, 0, 1
    begun = time.monotonic()
    if kind.is_softmax:
        layer = output_layer(kind, model.model.state_dict(), name)
    else:
        rows = _fit_rows(args, model, bars)
        tokens, has_bias = rows.tokens, getattr(model.side, "has_bias", False)
        layer = fitted_layer(kind, model.model.state_dict(), rows.rows, has_bias)
    if args.head == "cascade":
        prototypes = args.group_prototypes or DEFAULT_PROTOTYPES
        fitted, tokens = _fit(args, model, layer, codebook, prototypes, bars)
    seconds = time.monotonic() - begun
    symbols = model.symbols()
    new = _new_head(args.head, codebook, fitted, prototypes, layer)
    result = converted(state, kind, as_saved(layer, saved), new, symbols)
    vocab_size, tied = len(layer.table), layer.tied
    del model, layer, state, saved
    # A model takes what it loads apart.
    read = {**result, "model": dict(result["model"]), "cfg": copy.deepcopy(result["cfg"])}
    again = LoadedModel(output, args.data, device, state=read, purpose="convert")
    after = loss_of(again, valid, args.tokens, bars, "loss after")
    return Done(
        state=result,
        kind=kind,
        rate=rate,
        vocab_size=vocab_size,
        tied=tied,
        codebook=codebook,
        codebook_is_new=is_new,
        prototypes=prototypes,
        fitted=fitted,
        rows=rows,
        tokens=tokens,
        seconds=seconds,
        before=before,
        after=after,
    )


@torch.no_grad()
def loss_of(model: LoadedModel, text: Subset, tokens: int, bars: Bars, stage: str) -> Loss:
    """The model's loss on sentences drawn from a text, always the same ones, of about so many tokens."""
    indices = text.indices(least_positions([model]), drawn=True)
    sizes = np.array([text.dataset.num_tokens(int(index)) for index in indices])
    count = int(np.searchsorted(sizes.cumsum(), tokens)) + 1
    # By length: less padding.
    order = np.argsort(sizes[:count], kind="stable")
    batches = text.batches(indices[:count][order], max(_BATCH, int(sizes.max())))
    total, count = 0.0, 0
    for number, sample in enumerate(text.samples(batches), 1):
        features, target = model.features(sample)
        for log_probs, which in model.log_probs(features, target, len(model.symbols())):
            total -= float(log_probs.gather(1, target[which].unsqueeze(1)).double().sum())
        count += len(target)
        bars.update(stage, number, len(batches))
    if not count:
        raise MHEError(f"the split {text.name} has no token to predict; give more text")
    return Loss(total / count, count)


def _check_is_trained(loss: Loss, vocab_size: int, name: str, data: str) -> None:
    """Another dictionary of the same size has no other sign."""
    if not loss.nats < math.log(vocab_size) + 1:
        raise MHEError(
            f"{name} has a loss of {loss.nats:.2f} nats a token on the validation text of {data}, guessing "
            f"has {math.log(vocab_size):.2f}; give data binarised with the dictionaries it was trained with"
        )


def _fit(
    args: argparse.Namespace,
    model: LoadedModel,
    layer: OutputLayer,
    codebook: Codebook,
    prototypes: int,
    bars: Bars,
) -> tuple[Fitted, int]:
    """A group head, and on how many tokens it was fitted."""
    softmax = Softmax.of(layer.table, codebook)
    features, log_mass = gather(
        _train_features(args, model, layer.has_bias), softmax, args.tokens, bars.update
    )
    if len(features) < 2:
        raise MHEError(f"the training text of {args.data} has no two tokens to fit a group head on")
    fitted = fit(softmax, features, log_mass, prototypes, args.seed, bars.update)
    return fitted, len(features)


def _fit_rows(args: argparse.Namespace, model: LoadedModel, bars: Bars) -> FittedRows:
    """A softmax's rows, fitted to the head that the model has."""
    book = model.codebook
    assert book is not None  # else it has a softmax
    group_of = book.digits(torch.arange(len(book)))[:, 0]
    features = first_tokens(_train_features(args, model, has_bias=False), args.tokens, bars.update)
    try:
        return fit_rows(features, model.side.head.log_probs, group_of, book.lengths[0], bars.update)
    except ValueError as error:
        raise MHEError(f"the training text of {args.data} is too short: {error}") from error


def _train_features(args: argparse.Namespace, model: LoadedModel, has_bias: bool) -> Iterator[Tensor]:
    """What the output layer reads over the training text. Shape: (n, d) each."""
    text = Subset(model.task, args.data, "train")
    for sample in _samples(text, text.indices(least_positions([model]), drawn=True)):
        yield _head_inputs(model, sample, has_bias)


def _shares_sides(model: Any) -> bool:
    return bool(getattr(model, "share_all_embeddings", False))


def last_rate(state: dict[str, Any]) -> float | None:
    """The learning rate of the last update."""
    try:
        return float(state["last_optimizer_state"]["param_groups"][0]["lr"])
    except (KeyError, IndexError, TypeError):
        return None


def _samples(text: Subset, drawn: np.ndarray[Any, Any]) -> Iterator[dict[str, Any]]:
    """Batches of sentences in the order drawn, but for parts of some hundreds that are put by length: less
    padding. Only what is asked for is looked at, of texts of any size."""
    generator = np.random.default_rng(1)
    for start in range(0, len(drawn), _PART):
        part = drawn[start : start + _PART]
        sizes = np.array([text.dataset.num_tokens(int(index)) for index in part])
        by_length = part[np.argsort(sizes, kind="stable")]
        batches = text.batches(by_length, max(_BATCH, int(sizes.max())))
        # The last part is not read to its end, and the short sentences are no sample of it.
        generator.shuffle(batches)
        yield from text.samples(batches)


def _head_inputs(model: LoadedModel, sample: dict[str, Any], has_bias: bool) -> Tensor:
    """What the table of V x d is multiplied by. Shape: a batch -> (N, d)."""
    features, _ = model.features(sample)
    side = model.side
    if hasattr(side, "head_input"):
        given: Tensor = side.head_input(features)
        return given
    if hasattr(side, "lm_head"):
        lm_head = side.lm_head
        features = lm_head.layer_norm(lm_head.activation_fn(lm_head.dense(features)))
    return with_one(features) if has_bias else features


def _new_head(
    head: str, codebook: Codebook, fitted: Fitted | None, prototypes: int, layer: OutputLayer
) -> NewHead:
    if fitted is None:
        return NewHead(head, codebook)
    return NewHead(head, codebook, fitted.rows, fitted.bias, prototypes)
