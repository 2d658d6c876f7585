"""The ``--mhe-*`` flags of models, and the head they ask for."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import Any

from torch import nn

from mhe_fairseq.coding import Codebook, parse_lengths, plan_lengths, symbols_fingerprint
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead, SoftmaxHead

logger = logging.getLogger(__name__)

HEADS = ("product", "cascade", "sampling", "softmax")
#: Which flags only some heads read, with the heads that read them.
_ONLY_FOR = {
    "mhe_mixtures": ("product",),
    "mhe_bottleneck": ("cascade",),
    "mhe_groups": ("cascade", "sampling"),
    "mhe_chunk": ("softmax",),
}


def add_head_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags. Numbers are read as text and checked in ``HeadOptions``, so that a bad one is told
    in the same words wherever it comes from (command line, YAML, Python)."""
    group = parser.add_argument_group("multi-head encoding")
    group.add_argument("--mhe-head", metavar="HEAD", help=f"output layer: {', '.join(HEADS)}")
    group.add_argument(
        "--mhe-lengths", metavar="L1,L2,...", help="number of values of each digit (default: planned)"
    )
    group.add_argument(
        "--mhe-mixtures", metavar="K", help="product head: components of the mixture (default: 1)"
    )
    group.add_argument(
        "--mhe-codebook", metavar="FILE", help="which token has which slot (default: dictionary order)"
    )
    group.add_argument(
        "--mhe-bottleneck", metavar="R", help="cascade head: width of the local rows (default: the model's)"
    )
    group.add_argument(
        "--mhe-groups",
        metavar="G",
        help="random groups of a batch: trained on by the sampling head (default: 8), smoothed on by the "
        "cascade (default: 2)",
    )
    group.add_argument(
        "--mhe-chunk", metavar="N", help="softmax head: rows of logits held at once, 0 for all (default: 0)"
    )


@dataclass(frozen=True)
class HeadOptions:
    """What the flags ask for, checked.

    Attributes:
        head: one of ``HEADS``.
        codebook: tokens <-> slots.
        mixtures, bottleneck, groups, chunk: as the flags; None where not given.
        restored: the options come from a checkpoint, whose state dict brings the codebook.
    """

    head: str
    codebook: Codebook
    mixtures: int | None
    bottleneck: int | None
    groups: int | None
    chunk: int | None
    restored: bool

    @classmethod
    def resolve(cls, args: Any, symbols: list[str]) -> HeadOptions:
        """Check ``args`` against a dictionary, and write what was planned back into ``args``, so that the
        checkpoint holds it.

        Raises:
            MHEError: any bad flag.
        """
        head = getattr(args, "mhe_head", None) or "product"
        if head not in HEADS:
            raise MHEError(f"--mhe-head must be one of {', '.join(HEADS)}; got {head!r}")
        for name, heads in _ONLY_FOR.items():
            if getattr(args, name, None) is not None and head not in heads:
                flag = "--" + name.replace("_", "-")
                raise MHEError(f"{flag} is for --mhe-head {' or '.join(heads)}; the head is {head}")
        numbers = {
            "mixtures": _number(args, "mhe_mixtures", 1),
            "bottleneck": _number(args, "mhe_bottleneck", 1),
            "groups": _number(args, "mhe_groups", 1),
            "chunk": _number(args, "mhe_chunk", 0),
        }
        fingerprint = symbols_fingerprint(symbols)
        lengths_text = getattr(args, "mhe_lengths", None)
        path = getattr(args, "mhe_codebook", None)
        restored = getattr(args, "mhe_fingerprint", None) is not None
        if path and not restored:
            codebook = Codebook.load(path)
            codebook.check_dictionary(fingerprint, len(symbols), f"codebook file {path}")
            if lengths_text and parse_lengths(lengths_text) != codebook.lengths:
                shape = ",".join(map(str, codebook.lengths))
                raise MHEError(
                    f"--mhe-lengths {lengths_text} contradicts codebook file {path}, which has {shape}"
                )
        else:
            size = len(symbols)
            lengths = parse_lengths(lengths_text, size) if lengths_text else plan_lengths(size)
            codebook = Codebook(lengths, vocab_size=size, dictionary=fingerprint)
        args.mhe_head = head
        args.mhe_lengths = ",".join(map(str, codebook.lengths))
        args.mhe_fingerprint = args.mhe_fingerprint if restored else codebook.fingerprint
        return cls(head, codebook, restored=restored, **numbers)

    def build(self, dim: int, embedding: nn.Embedding | None) -> OutputHead:
        """The head for features of width ``dim``; ``embedding`` is given where the flags ask to tie."""
        head = self._build(dim, embedding)
        head.adopt_codebook = self.restored
        logger.info(
            "mhe: %s, %s; output layer of %s parameters (softmax: %s); %s",
            type(head).__name__,
            self.codebook,
            f"{head.output_parameters():,}",
            f"{len(self.codebook) * dim:,}",
            _tying(head, embedding),
        )
        return head

    def _build(self, dim: int, embedding: nn.Embedding | None) -> OutputHead:
        book = self.codebook
        if self.head == "product":
            return ProductHead(dim, book, mixtures=self.mixtures or 1)
        if self.head == "cascade":
            # A bottleneck asks for rows of its own.
            tied = None if self.bottleneck else embedding
            return CascadeHead(dim, book, bottleneck=self.bottleneck, tied=tied, groups_sampled=self.groups)
        if self.head == "sampling":
            return SamplingHead(dim, book, groups=self.groups or 8, tied=embedding)
        return SoftmaxHead(dim, book, tied=embedding, chunk=self.chunk or 0)


def _tying(head: OutputHead, embedding: nn.Embedding | None) -> str:
    """One line on what the embedding-sharing flags do to the output layer."""
    if embedding is None:
        return "not tied to the embeddings"
    if isinstance(head, ProductHead):
        return "input embeddings are shared as asked, the output layer has no V x d table to tie"
    if isinstance(head, CascadeHead) and not head.is_tied:
        return "input embeddings are shared as asked, --mhe-bottleneck keeps the output layer's own table"
    return "tied to the decoder's input embeddings"


def _number(args: Any, name: str, lowest: int) -> int | None:
    value = getattr(args, name, None)
    if value is None:
        return None
    flag = "--" + name.replace("_", "-")
    try:
        number = int(str(value))
    except ValueError:
        raise MHEError(f"{flag} must be a whole number of at least {lowest}, got {value!r}") from None
    if number < lowest:
        raise MHEError(f"{flag} must be at least {lowest}, got {number}")
    return number
