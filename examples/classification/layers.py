"""The output layers to choose from."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.distributed as dist
from images import Split, class_means

from mhe_fairseq.coding import Codebook, parse_lengths, plan_lengths
from mhe_fairseq.coding.assign import cluster_slots
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import (
    CascadeHead,
    Margin,
    OutputHead,
    ProductHead,
    SamplingHead,
    Shard,
    ShardedCascadeHead,
    ShardedSamplingHead,
    SoftmaxHead,
)

HEADS = ("softmax", "product", "mixture", "cascade", "sampling")

#: Heads that can score by angle.
ANGULAR = ("softmax", "sampling")

#: Heads whose table can be split over ranks.
SPLIT = ("cascade", "sampling")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output layer").add_argument
    add("--head", choices=HEADS, default="softmax", help="default: %(default)s")
    add("--lengths", help="of the digits of a class, such as 64,64 (default: planned)")
    add(
        "--order",
        choices=("given", "random", "clusters"),
        default="given",
        help="classes get their digits in order of their names, in a random one, or those whose mean images "
        "are alike share their first digits (default: %(default)s)",
    )
    add("--prototypes", type=int, default=1, help="of --head cascade: rows of a group (default: %(default)s)")
    add("--mixtures", type=int, default=4, help="of --head mixture (default: %(default)s)")
    add("--groups", type=int, help="that --head sampling draws (default: an eighth of the classes or more)")
    add("--margin", choices=("arcface", "cosface"), help="of --head softmax or sampling (default: none)")
    add("--scale", type=float, default=64.0, help="of the margin's cosines (default: %(default)s)")
    add("--margin-size", type=float, help="default: 0.5 radians for arcface, 0.35 for cosface")
    add("--shard", action="store_true", help="split the table of --head cascade or sampling over ranks")


def check(args: argparse.Namespace) -> None:
    """Raises:
    MHEError: arguments that cannot be had together.
    """
    if args.margin and args.head not in ANGULAR:
        raise MHEError(
            f"--margin is for --head {' or '.join(ANGULAR)}, which have a row for every class; got "
            f"--head {args.head}"
        )
    if args.prototypes != 1 and args.head != "cascade":
        raise MHEError(f"--prototypes is for --head cascade; got {args.prototypes} for --head {args.head}")
    if args.shard and args.head not in SPLIT:
        raise MHEError(f"--shard is for --head {' or '.join(SPLIT)}; got --head {args.head}")


def codebook_for(args: argparse.Namespace, classes: int, train: Split | None) -> Codebook:
    """Classes <-> digits."""
    lengths = parse_lengths(args.lengths, classes) if args.lengths else plan_lengths(classes)
    if args.order == "given":
        return Codebook(lengths, vocab_size=classes)
    if args.order == "clusters":
        if train is None:
            raise MHEError("--order clusters needs images of the classes, and there are none here")
        return Codebook(lengths, cluster_slots(class_means(train, args.workers).numpy(), lengths))
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(args.seed))
    return Codebook(lengths, order)


def build(args: argparse.Namespace, dim: int, classes: int, train: Split | None = None) -> OutputHead:
    """The layer of ``--head``.

    Args:
        args: the flags.
        dim: d.
        classes: V.
        train: images to train on; without them classes are taken to have as many each.

    Raises:
        MHEError: arguments that do not fit.
    """
    check(args)
    if args.shard and not dist.is_initialized():
        raise MHEError(
            "--shard splits the table over processes, and there is one; start several with torchrun "
            "--nproc-per-node N"
        )
    book = codebook_for(args, classes, train)
    margin = Margin(args.margin, args.scale, args.margin_size) if args.margin else None
    shard: dict[str, Any] = {"shard": Shard.of()} if args.shard else {}
    if args.head == "softmax":
        return SoftmaxHead(dim, book, margin=margin)
    if args.head == "cascade":
        cascade = ShardedCascadeHead if shard else CascadeHead
        return cascade(dim, book, group_prototypes=args.prototypes, **shard)
    if args.head == "sampling":
        kind = ShardedSamplingHead if shard else SamplingHead
        frequencies = torch.ones(classes) if train is None else train.labels.bincount(minlength=classes)
        return kind(dim, book, groups=args.groups, margin=margin, frequencies=frequencies, **shard)
    return ProductHead(dim, book, mixtures=args.mixtures if args.head == "mixture" else 1)
