"""The ``--mhe-*`` flags of models: their names and help, as argparse and as a dataclass."""

# No `from __future__ import annotations`: fairseq reads the types of the dataclass's fields.
import argparse
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass

HEADS = ("product", "cascade", "sampling", "softmax")

#: Its BLEU was not below a softmax's with any seed, in less time (docs/results.md).
DEFAULT_HEAD = "cascade"

#: Share of a training's updates that a sampling head has the exact loss in, where none is given: most of what
#: sampling costs in BLEU is taken back (docs/results.md).
DEFAULT_EXACT_LAST = 0.1

#: name -> metavar, help.
FLAGS = {
    "mhe_head": ("HEAD", f"output layer: {', '.join(HEADS)} (default: {DEFAULT_HEAD})"),
    "mhe_lengths": ("L1,L2,...", "number of values of each digit (default: planned)"),
    "mhe_mixtures": ("K", "product head: components of the mixture (default: 1)"),
    "mhe_group_rows": (
        "KIND",
        "product or cascade head with shared embeddings. input (default): the rows of groups are part of "
        "the input embeddings of their tokens, and the row of a first digit of one token (mhe assign "
        "--shortlist) is that token's embedding plus a row of its own; tied (default of mixtures): only the "
        "latter; own: neither",
    ),
    "mhe_tie": (
        "HOW",
        "with --share-all-embeddings, what the encoder's embeddings are to the decoder's. linear (default "
        "of the cascade and the sampling head): a learned linear map of them, which begins as the identity; "
        "exact (default of the others): the same",
    ),
    "mhe_codebook": ("FILE", "which token has which slot (default: dictionary order)"),
    "mhe_bottleneck": ("R", "cascade head: width of the rows after the first digit (default: the model's)"),
    "mhe_group_prototypes": (
        "M",
        "cascade head: rows of each group, whose exponentials are added for the group's probability "
        "(default: 1)",
    ),
    "mhe_smoothing": (
        "FORM",
        "cascade head: label smoothing on groups sampled for the batch (sampled, default) or on each token's "
        "own group only (per-level)",
    ),
    "mhe_dropout": (
        "P",
        "cascade head: dropout of the features that the digits after the first read (default: 0)",
    ),
    "mhe_groups": (
        "G",
        "groups drawn. sampling head: to train a token on (default: groups of an eighth of the tokens, "
        "between 2048 and 8192); cascade: to smooth a token on (default: 2)",
    ),
    "mhe_sampling": (
        "KIND",
        "sampling head: train on the gold group and groups drawn for each token by what they are predicted "
        "to hold (predicted; default with --mhe-codebook), on it and random groups that the batch shares "
        "(shared; default without, and with --mhe-shard), on the gold group alone (own), or on all gold "
        "groups of the batch (batch)",
    ),
    "mhe_exact_last": (
        "SHARE",
        "sampling head: the last updates of the training, as a share of --max-update or --max-epoch, have "
        f"the exact loss of a softmax (default: {DEFAULT_EXACT_LAST:g} with --mhe-sampling shared, else 0)",
    ),
    "mhe_exact_after": ("N", "sampling head: all updates after the first N have the exact loss"),
    "mhe_chunk": (
        "N",
        "softmax head, and sampling head where its loss is exact: rows of logits held at once, 0 for all "
        "(default: 0; sampling: 512)",
    ),
}

#: name -> help, of flags without a value.
SWITCHES = {
    "mhe_bias": "mhe_roberta: a bias of every token in the output layer, as fairseq's roberta has; the head "
    "has rows of its own then",
    "mhe_shard": "cascade or sampling head with rows of its own: split them by groups over the ranks of the "
    "training; each rank keeps the gradients and the optimiser's state of its part only, and checkpoints "
    "stay whole",
}


def flag(name: str) -> str:
    """A flag's name on the command line."""
    return "--" + name.replace("_", "-")


def add_head_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags. Numbers and words are read as text and checked in ``HeadOptions``, so that a bad one is
    told in the same words wherever it comes from (command line, YAML, Python)."""
    group = parser.add_argument_group("multi-head encoding")
    for name, (metavar, text) in FLAGS.items():
        group.add_argument(flag(name), metavar=metavar, help=text)
    for name, text in SWITCHES.items():
        group.add_argument(flag(name), action="store_true", help=text)


def _option(name: str) -> Any:
    return field(default=None, metadata={"help": FLAGS[name][1]})


@dataclass
class HeadConfig(FairseqDataclass):
    """The flags for models that fairseq configures by a dataclass. ``Any`` is text on the command line and
    whatever stands there in YAML, which ``HeadOptions`` reads and checks, as ``add_head_args`` has it."""

    mhe_head: Any = _option("mhe_head")
    mhe_lengths: Any = _option("mhe_lengths")
    mhe_mixtures: Any = _option("mhe_mixtures")
    mhe_group_rows: Any = _option("mhe_group_rows")
    mhe_tie: Any = _option("mhe_tie")
    mhe_codebook: Any = _option("mhe_codebook")
    mhe_bottleneck: Any = _option("mhe_bottleneck")
    mhe_group_prototypes: Any = _option("mhe_group_prototypes")
    mhe_smoothing: Any = _option("mhe_smoothing")
    mhe_dropout: Any = _option("mhe_dropout")
    mhe_groups: Any = _option("mhe_groups")
    mhe_sampling: Any = _option("mhe_sampling")
    mhe_exact_last: Any = _option("mhe_exact_last")
    mhe_exact_after: Any = _option("mhe_exact_after")
    mhe_chunk: Any = _option("mhe_chunk")
    mhe_bias: bool = field(default=False, metadata={"help": SWITCHES["mhe_bias"]})
    mhe_shard: bool = field(default=False, metadata={"help": SWITCHES["mhe_shard"]})
    # fairseq drops what a checkpoint has and the dataclass has not. No flags for users: not in --help.
    mhe_fingerprint: Any = field(default=None, metadata={"help": argparse.SUPPRESS})
    mhe_dictionary: Any = field(default=None, metadata={"help": argparse.SUPPRESS})
    mhe_signature: Any = field(default=None, metadata={"help": argparse.SUPPRESS})
