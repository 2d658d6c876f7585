"""The head that the ``--mhe-*`` flags ask for."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mhe_fairseq.coding import Codebook, parse_lengths, plan_lengths, symbols_fingerprint
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import (
    CascadeHead,
    OutputHead,
    ProductHead,
    SamplingHead,
    ShardedCascadeHead,
    ShardedSamplingHead,
    SoftmaxHead,
)
from mhe_fairseq.heads.base import TASKS_FLAGS
from mhe_fairseq.heads.cascade.head import SMOOTHING_FORMS
from mhe_fairseq.heads.sampling.exact_end import ExactEnd
from mhe_fairseq.heads.sampling.head import DRAWING, EXACT_ROWS, VARIANTS, default_groups
from mhe_fairseq.heads.sharded.state import ShardedHead
from mhe_fairseq.models import sharding
from mhe_fairseq.models.begun_with import lengths_begun_with
from mhe_fairseq.models.digit_embedding import DigitEmbedding
from mhe_fairseq.models.flag_values import share_of, switch_of, whole_of, word_of
from mhe_fairseq.models.flags import DEFAULT_EXACT_LAST, DEFAULT_HEAD, HEADS, flag
from mhe_fairseq.models.source_embedding import TIES, tie_of

#: What the rows of the first digit are, where the embeddings are shared.
GROUP_ROWS = ("input", "tied", "own")

#: What tasks of masked tokens add to the dictionary, last.
MASK = "<mask>"


def is_added(symbol: str) -> bool:
    """Whether a symbol looks like those that tasks add to a dictionary: ``<mask>`` and ``[en_XX]``."""
    return symbol == MASK or symbol[:1] + symbol[-1:] == "[]"


logger = logging.getLogger(__name__)

#: What ``HeadOptions.resolve`` writes into ``args``, so that a checkpoint holds what was planned.
PLANNED = (
    "mhe_head", "mhe_lengths", "mhe_groups", "mhe_sampling", "mhe_group_rows", "mhe_tie", "mhe_exact_last",
    "mhe_fingerprint", "mhe_dictionary",
)  # fmt: skip

#: Which flags only some heads read, with the heads that read them.
_ONLY_FOR = {
    "mhe_mixtures": ("product",),
    "mhe_group_rows": ("product", "cascade"),
    "mhe_bottleneck": ("cascade",),
    "mhe_group_prototypes": ("cascade",),
    "mhe_smoothing": ("cascade",),
    "mhe_dropout": ("cascade",),
    "mhe_sampling": ("sampling",),
    "mhe_groups": ("cascade", "sampling"),
    "mhe_exact_last": ("sampling",),
    "mhe_exact_after": ("sampling",),
    "mhe_chunk": ("softmax", "sampling"),
    "mhe_bias": HEADS,
    "mhe_shard": ("cascade", "sampling"),
}


@dataclass(frozen=True)
class HeadOptions:
    """What the flags ask for, checked.

    Attributes:
        head: one of ``HEADS``.
        codebook: tokens <-> slots.
        restored: the options come from a checkpoint, whose state dict brings the codebook's slots.
        mixtures, group_rows, tie, bottleneck, group_prototypes, smoothing, dropout, groups, sampling,
            exact_last, exact_after, chunk: as the flags; None where not given (what was planned, for
            ``groups`` and ``sampling`` of the sampling head, ``group_rows`` and ``tie``).
        bias: rows have a bias, for ``mhe_roberta``.
        shard: split the table over ranks, where there are several.
    """

    head: str
    codebook: Codebook
    restored: bool
    mixtures: int | None
    group_rows: str | None
    tie: str | None
    bottleneck: int | None
    group_prototypes: int | None
    smoothing: str | None
    dropout: float | None
    groups: int | None
    sampling: str | None
    exact_last: float | None
    exact_after: int | None
    chunk: int | None
    bias: bool
    shard: bool

    @classmethod
    def resolve(cls, args: Any, symbols: list[str]) -> HeadOptions:
        """Check ``args`` against a dictionary, and write what was planned back into ``args``, so that the
        checkpoint holds it.

        Raises:
            MHEError: any bad flag.
        """
        head = getattr(args, "mhe_head", None) or DEFAULT_HEAD
        if head not in HEADS:
            raise MHEError(f"--mhe-head must be one of {', '.join(HEADS)}; got {head!r}")
        for name, heads in _ONLY_FOR.items():
            value = getattr(args, name, None)
            if value is not None and value is not False and head not in heads:
                raise MHEError(f"{flag(name)} is for --mhe-head {' or '.join(heads)}; the head is {head}")
        mixtures = whole_of(args, "mhe_mixtures", 1)
        group_rows = word_of(args, "mhe_group_rows", GROUP_ROWS)
        word_of(args, "mhe_tie", TIES)
        bottleneck = whole_of(args, "mhe_bottleneck", 1)
        prototypes = whole_of(args, "mhe_group_prototypes", 1)
        smoothing = word_of(args, "mhe_smoothing", SMOOTHING_FORMS)
        dropout = share_of(args, "mhe_dropout")
        groups = whole_of(args, "mhe_groups", 1)
        sampling = word_of(args, "mhe_sampling", VARIANTS)
        exact_last = share_of(args, "mhe_exact_last", whole=True)
        exact_after = whole_of(args, "mhe_exact_after", 0)
        chunk = whole_of(args, "mhe_chunk", 0)
        shard = switch_of(args, "mhe_shard")
        if sampling not in DRAWING:
            _check_groups_are_drawn(groups, "--mhe-sampling", sampling, "shared")
        _check_groups_are_drawn(groups, "--mhe-smoothing", smoothing, "sampled")
        if shard and sampling == "predicted":
            raise MHEError(
                "--mhe-sampling predicted draws groups for each token, which --mhe-shard cannot; leave out "
                "one of the two"
            )
        if exact_last is not None and exact_after is not None:
            raise MHEError(
                f"--mhe-exact-last {exact_last:g} and --mhe-exact-after {exact_after} both say when the "
                "exact loss begins; give one of them"
            )
        restored = getattr(args, "mhe_fingerprint", None) is not None
        if restored:
            _check_symbols(getattr(args, "mhe_dictionary", None), symbols)
        codebook = _restored_codebook(args, symbols) if restored else _codebook(args, symbols)
        if head == "sampling":
            sampling = sampling or _usual_sampling(args, restored, shard)
            if sampling in DRAWING and groups is None:
                groups = default_groups(codebook)
        if head in _ONLY_FOR["mhe_group_rows"] and group_rows is None:
            # Checkpoints from before there was a choice have rows of their own.
            group_rows = "own" if restored else "tied" if (mixtures or 1) > 1 else "input"
        tie = tie_of(args, head, restored)
        args.mhe_exact_last = exact_last
        if head == "sampling" and not restored and exact_last is None and exact_after is None:
            # Nothing is written for nothing: that is how older checkpoints have it.
            args.mhe_exact_last = _usual_exact_last(sampling) or None
        args.mhe_head = head
        args.mhe_lengths = ",".join(map(str, codebook.lengths))
        args.mhe_groups = groups
        args.mhe_sampling = sampling
        args.mhe_group_rows = group_rows
        args.mhe_tie = tie
        args.mhe_fingerprint = args.mhe_fingerprint if restored else codebook.fingerprint
        # Checkpoints from before it was kept do not get it: their dictionary is not known.
        args.mhe_dictionary = getattr(args, "mhe_dictionary", None) if restored else pinned(symbols)
        return cls(
            head=head,
            codebook=codebook,
            restored=restored,
            mixtures=mixtures,
            group_rows=group_rows,
            tie=tie,
            bottleneck=bottleneck,
            group_prototypes=prototypes,
            smoothing=smoothing,
            dropout=dropout,
            groups=groups,
            sampling=sampling,
            exact_last=exact_last,
            exact_after=exact_after,
            chunk=chunk,
            bias=switch_of(args, "mhe_bias"),
            shard=shard,
        )

    def build(self, dim: int, embedding: nn.Embedding | None) -> OutputHead:
        """The head for features of width ``dim``; ``embedding`` is given where the flags ask to tie.

        Raises:
            MHEError: numbers that do not fit ``dim`` or the codebook.
        """
        try:
            head = self._build(dim, embedding)
        except MHEError as error:
            # The head speaks of its arguments; say which flags these are.
            raise MHEError(f"{self.flags()}: {error}") from None
        head.adopt_codebook = self.restored
        if isinstance(embedding, DigitEmbedding):
            embedding.follow(head)
        if isinstance(head, ShardedHead):
            sharding.prepare(head)
        shape = "x".join(map(str, self.codebook.lengths))
        logger.info(
            "mhe: %s, %s; output layer of %s parameters (softmax: %s); %s",
            type(head).__name__,
            f"the checkpoint's codebook, {shape}" if self.restored else self.codebook,
            f"{head.output_parameters():,}",
            f"{len(self.codebook) * dim:,}",
            _tying(head, embedding) + _rows_in_input(head) + self._mapped() + _split(head),
        )
        return head

    def _build(self, dim: int, embedding: nn.Embedding | None) -> OutputHead:
        book = self.codebook
        tied_groups = None if self.group_rows == "own" else embedding
        rows_in_input = self.group_rows == "input" and isinstance(embedding, DigitEmbedding)
        if self.head == "product":
            return ProductHead(
                dim, book, mixtures=self.mixtures or 1, tied=tied_groups, rows_in_input=rows_in_input
            )
        # What comes from a checkpoint is to be read, by one process or by several that are out of step.
        shard = sharding.shard() if self.shard and not self.restored else None
        if self.head == "cascade":
            cascade = CascadeHead if shard is None else partial(ShardedCascadeHead, shard=shard)
            return cascade(
                dim,
                book,
                bottleneck=self.bottleneck,
                # A bottleneck asks for rows of its own.
                tied=None if self.bottleneck else embedding,
                tied_groups=tied_groups,
                rows_in_input=rows_in_input,
                groups_sampled=self.groups,
                smoothing_form=self.smoothing or "sampled",
                dropout=self.dropout or 0.0,
                group_prototypes=self.group_prototypes or 1,
            )
        if self.head == "sampling":
            sampling = SamplingHead if shard is None else partial(ShardedSamplingHead, shard=shard)
            built = sampling(
                dim,
                book,
                groups=self.groups,
                tied=embedding,
                variant=self.sampling or "shared",
                chunk=EXACT_ROWS if self.chunk is None else self.chunk,
            )
            built.exact_end = self._exact_end()
            return built
        return SoftmaxHead(dim, book, tied=embedding, chunk=self.chunk or 0)

    def _exact_end(self) -> ExactEnd:
        if self.exact_after is not None:
            return ExactEnd(after=self.exact_after)
        if self.exact_last is not None:
            return ExactEnd(self.exact_last)
        return ExactEnd(_usual_exact_last(self.sampling), is_asked=False)

    def _mapped(self) -> str:
        return "; the encoder reads a linear map of the decoder's embeddings" if self.tie == "linear" else ""

    def flags(self) -> str:
        """The head and what was given for it, as on the command line; not group_rows and sampling, which are
        planned where they are not given, and fit every codebook."""
        names = [name for name in _ONLY_FOR if name not in ("mhe_group_rows", "mhe_sampling")]
        values = ((name, getattr(self, name.removeprefix("mhe_"))) for name in names)
        given = [
            f"{flag(name)} {value}" for name, value in values if value is not None and value is not False
        ]
        given = [text.removesuffix(" True") for text in given]
        return " ".join([f"--mhe-head {self.head}", *given])


def _codebook(args: Any, symbols: list[str]) -> Codebook:
    """The one in ``--mhe-codebook``, or dictionary order in lengths given or planned."""
    size, fingerprint = len(symbols), symbols_fingerprint(symbols)
    text, path = _lengths(args), getattr(args, "mhe_codebook", None)
    if not path:
        lengths = parse_lengths(text, size) if text else lengths_begun_with(args, size) or plan_lengths(size)
        return Codebook(lengths, vocab_size=size, dictionary=fingerprint)
    codebook = Codebook.load(path)
    if len(codebook) == size + 1 and codebook.dictionary == symbols_fingerprint([*symbols, MASK]):
        # A pretraining's, for a task that masks nothing.
        codebook = Codebook(codebook.lengths, codebook.slots[:-1], dictionary=fingerprint)
    codebook.check_dictionary(fingerprint, size, f"codebook file {path}")
    if text and parse_lengths(text) != codebook.lengths:
        shape = ",".join(map(str, codebook.lengths))
        raise MHEError(f"--mhe-lengths {text} contradicts codebook file {path}, which has {shape}")
    return codebook


def _restored_codebook(args: Any, symbols: list[str]) -> Codebook:
    """Stands in for the codebook of a checkpoint until its state dict is loaded.

    Tokens are spread evenly, so as many groups have tokens as in any codebook of these lengths: a number of
    groups that fits the checkpoint's codebook fits this one too.
    """
    size = len(symbols)
    lengths = parse_lengths(_lengths(args))
    slots = math.prod(lengths)
    if slots < size:
        raise MHEError(
            f"the checkpoint's codebook has {slots} slots and the dictionary {size} tokens; use the "
            f"dictionary the model was trained with{TASKS_FLAGS}"
        )
    return Codebook(lengths, torch.arange(size) * slots // size, dictionary=symbols_fingerprint(symbols))


def pinned(symbols: list[str]) -> str:
    """What a checkpoint keeps of its dictionary: fingerprint and size."""
    return f"{symbols_fingerprint(symbols)}:{len(symbols)}"


def _check_symbols(theirs_pinned: str | None, symbols: list[str]) -> None:
    """Refuse another dictionary of as many tokens. (One of another size is told when weights are loaded.)

    Args:
        theirs_pinned: of the dictionary of the training; None: not known.
        symbols: of the dictionary at hand.
    """
    theirs, ours = (theirs_pinned or "").partition(":"), pinned(symbols).partition(":")
    if theirs[2] == ours[2] and theirs[0] != ours[0]:
        raise MHEError(
            f"the checkpoint is for another dictionary (fingerprint {theirs[0]}, the data's has {ours[0]}, "
            f"both of {len(symbols)} tokens); use the dictionary the model was trained with"
        )


def _lengths(args: Any) -> str | Sequence[int]:
    """As given, "" where not; YAML reads a single length as a number."""
    value = getattr(args, "mhe_lengths", None)
    return str(value) if isinstance(value, int | float) else value or ""


def _usual_sampling(args: Any, restored: bool, shard: bool) -> str:
    """Where none is given. A codebook was learned to have few groups hold most of a token's probability,
    which is what "predicted" looks for; split over ranks there is none. Checkpoints from before that was so,
    which have none written, are of "shared".
    """
    has_book = getattr(args, "mhe_codebook", None) and not restored
    return "predicted" if has_book and not shard else "shared"


def _usual_exact_last(sampling: str | None) -> float:
    """Where none is given: it takes back what draws at random cost. Predicted ones are biased so little that
    it gained nothing, and the paper's variants are as in the paper."""
    return DEFAULT_EXACT_LAST if sampling == "shared" else 0.0


def _check_groups_are_drawn(groups: int | None, other: str, word: str | None, drawing: str) -> None:
    if groups is not None and word not in (None, drawing):
        raise MHEError(
            f"--mhe-groups {groups} is for {other} {drawing}; with {other} {word} no groups are drawn, "
            "leave it out"
        )


def _tying(head: OutputHead, embedding: nn.Embedding | None) -> str:
    """One line on what the embedding-sharing flags do to the output layer."""
    if embedding is None:
        return "not tied to the embeddings"
    if isinstance(head, ProductHead):
        if head.singles is not None and len(head.singles.tokens):
            return "first digits of one token are tied to its input embedding"
        return "input embeddings are shared as asked, the output layer has no V x d table to tie"
    if isinstance(head, CascadeHead) and not head.is_tied:
        return "input embeddings are shared as asked, --mhe-bottleneck keeps the output layer's own table"
    return "tied to the input embeddings"


def _split(head: OutputHead) -> str:
    if not isinstance(head, ShardedHead):
        return ""
    return f"; split over {head.shard.size} ranks, {head.sharded.own} of {head.sharded.prefixes} groups here"


def _rows_in_input(head: OutputHead) -> str:
    return "; rows of groups are part of the input embeddings" if head.has_input_rows else ""
