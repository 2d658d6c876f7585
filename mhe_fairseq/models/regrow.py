"""A checkpoint for another dictionary: rows go with their symbols, everything else stays.

For models of ours and for fairseq's own transformers, language models and masked language models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.coding.codebook import unravel
from mhe_fairseq.coding.symbols import Origins
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.regrow import regrow_head
from mhe_fairseq.heads.rows.inherited import inherited
from mhe_fairseq.models.roberta import dictionary_pin, pinned_fingerprint

#: Where rows of tokens lie, and whether they are of the tokens read or of those predicted.
_SOURCE = ("encoder.embed_tokens.weight", "encoder.sentence_encoder.embed_tokens.weight")
_TARGET = (
    "decoder.embed_tokens.weight",
    "decoder.output_projection.weight",
    "decoder.output_projection.bias",
    "encoder.lm_head.weight",
    "encoder.lm_head.bias",
)
#: Of heads of ours, with the embedding that they may be tied to.
_HEADS = {"decoder.head.": "decoder.embed_tokens.weight", "encoder.head.": _SOURCE[1]}
_PINNED = "encoder.mhe_dictionary"


@dataclass(frozen=True)
class Table:
    """Rows of tokens in a state dict.

    Attributes:
        name: its key.
        old, new: rows before and after.
        beyond: rows before that no symbol of the dictionary names; they are left out.
    """

    name: str
    old: int
    new: int
    beyond: int


@dataclass(frozen=True)
class GrownWeights:
    """A state dict for another dictionary.

    Attributes:
        weights: the state dict.
        tables: those whose rows went with their symbols.
        old_book, book: the head's codebooks; None without a head of ours.
    """

    weights: dict[str, Tensor]
    tables: list[Table]
    old_book: Codebook | None
    book: Codebook | None


@dataclass(frozen=True)
class Dictionaries:
    """The symbols of one side of a model, before and after.

    Attributes:
        old, new: symbols in order.
        origins: of the new ones.
    """

    old: list[str]
    new: list[str]
    origins: Origins


def regrow_weights(
    weights: Mapping[str, Tensor],
    options: Any,
    source: Dictionaries,
    target: Dictionaries,
    make_book: Callable[[Codebook], Codebook],
    name: str,
    seed: int = 1,
) -> GrownWeights:
    """Move the rows of all tables of tokens.

    Args:
        weights: of a checkpoint; not changed, tensors shared where they stay.
        options: of its model, flat.
        source, target: of the tokens read and predicted; the same object where the two sides have one
            dictionary.
        make_book: gives the new codebook of an old one.
        name: of the checkpoint, in errors.
        seed: of the noise in rows of symbols made of no known pieces.

    Raises:
        MHEError: the checkpoint is not of the old dictionaries, or of a model whose rows are not in tables of
            one row a token.
    """
    _check_kind(weights, name)
    has_encoder = any(key.startswith("encoder.") for key in weights)
    sides = dict.fromkeys(_SOURCE, source) | dict.fromkeys(_TARGET, target)
    if not has_encoder:
        # A language model reads what it predicts; its output may be of the first symbols only.
        sides["decoder.embed_tokens.weight"] = source
    found = [key for key in sides if key in weights]
    if not found:
        raise MHEError(f"{name} has no table of tokens; looked for {', '.join(sides)}")
    beyond = {key: _beyond(weights[key], sides[key].old, key, name) for key in found}
    made = dict(weights)
    books: tuple[Codebook | None, Codebook | None] = (None, None)
    done: list[tuple[Tensor, Origins, Tensor]] = []
    prefix = next((each for each in _HEADS if each + "codebook_slots" in weights), None)
    if prefix is not None:
        books = _head(weights, made, options, target, make_book, prefix, name, seed)
        key = _HEADS[prefix]
        if key in weights:
            done.append((weights[key], target.origins, made[key]))
    for key in found:
        if prefix is not None and key == _HEADS[prefix]:
            continue
        old, origins = weights[key], sides[key].origins
        # Shared tables are there under two names.
        for table, theirs, grown in done:
            if theirs is origins and (table is old or torch.equal(table, old)):
                made[key] = grown
                break
        else:
            made[key] = inherited(old[: origins.old_size], origins, seed)
            done.append((old, origins, made[key]))
    if _PINNED in weights:
        _check_pin(weights[_PINNED], source.old, name)
        made[_PINNED] = dictionary_pin(source.new)
    tables = [Table(key, len(weights[key]), len(made[key]), beyond[key]) for key in found]
    return GrownWeights(made, tables, *books)


def _head(
    weights: Mapping[str, Tensor],
    made: dict[str, Tensor],
    options: Any,
    target: Dictionaries,
    make_book: Callable[[Codebook], Codebook],
    prefix: str,
    name: str,
    seed: int,
) -> tuple[Codebook, Codebook]:
    """Put a head of ours and its embedding into ``made``; gives the two codebooks."""
    state = {key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)}
    slots, lengths = state["codebook_slots"], tuple(state["codebook_lengths"].tolist())
    if len(slots) != len(target.old):
        raise MHEError(
            f"the head of {name} is for {len(slots):,} tokens and its dictionary has {len(target.old):,}: it "
            "was trained with another one; say where that is with --old-data"
        )
    old = Codebook(lengths, slots, dictionary=symbols_fingerprint(target.old))
    new = make_book(old)
    embedding = weights.get(_HEADS[prefix])
    grown = regrow_head(
        state,
        new,
        target.origins,
        None if embedding is None else embedding[: len(target.old)],
        tied_groups=_ties_groups(options, prefix),
        seed=seed,
    )
    for key in state:
        del made[prefix + key]
    made.update({prefix + key: value for key, value in grown.state.items()})
    if grown.embedding is not None:
        made[_HEADS[prefix]] = grown.embedding
    return old, new


def _ties_groups(options: Any, prefix: str) -> bool:
    """Whether rows of single first digits have the embedding in them (``HeadOptions``)."""
    if prefix == "encoder.head.":
        is_tied = not getattr(options, "untie_weights_roberta", False)
    else:
        names = ("share_all_embeddings", "share_decoder_input_output_embed")
        is_tied = any(getattr(options, each, False) for each in names)
    # A bias has no place in an embedding.
    is_tied = is_tied and not getattr(options, "mhe_bias", False)
    return is_tied and getattr(options, "mhe_group_rows", None) in ("input", "tied")


def most_groups(options: Any, book: Codebook) -> int | None:
    """``--mhe-groups`` of a model with this codebook, whose groups may be fewer than before; None where no
    number is given.

    Raises:
        MHEError: a sampling head, and no two groups.
    """
    given = getattr(options, "mhe_groups", None)
    if given is None:
        return None
    digits = unravel(book.slots, book.lengths)
    count = 1 if getattr(options, "mhe_head", None) == "sampling" else book.heads - 1
    groups = len(digits[:, :count].unique(dim=0))
    if groups < 2:
        raise MHEError(
            f"all {len(book):,} symbols of the new dictionary fall into one group of the model's codebook, "
            "so there are no groups to draw; train a new model for so small a dictionary"
        )
    return min(int(given), groups - 1)


def _check_kind(weights: Mapping[str, Tensor], name: str) -> None:
    marks = {"adaptive_softmax.": "an adaptive softmax", "embed_tokens.embeddings.": "adaptive input"}
    for mark, what in marks.items():
        if any(mark in key for key in weights):
            raise MHEError(
                f"{name} has {what}, whose tables are cut by the order of its dictionary; models with one "
                "row a token in one table can be given another dictionary"
            )


def _beyond(table: Tensor, symbols: list[str], key: str, name: str) -> int:
    """Rows that the dictionary has no symbols for."""
    rows = len(table)
    if rows < len(symbols):
        raise MHEError(
            f"{key} of {name} has {rows:,} rows and its dictionary {len(symbols):,} symbols: it was trained "
            "with another one; say where that is with --old-data"
        )
    return rows - len(symbols)


def _check_pin(pin: Tensor, symbols: list[str], name: str) -> None:
    pinned, own = pinned_fingerprint(pin), symbols_fingerprint(symbols)
    if pinned != own:
        raise MHEError(
            f"{name} was trained with another dictionary (fingerprint {pinned}) than the one that is there "
            f"now ({own}); say where that is with --old-data"
        )
