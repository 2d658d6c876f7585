#!/usr/bin/env python3
"""Calculate what output layers cost on many GPUs, and write the table into a page.

    python scripts/study/scale_costs.py                         # prints the table
    python scripts/study/scale_costs.py --page docs/scale.md    # fills the page's blocks; --check compares

Nothing is measured here: every number follows from the formulas below and from the assumptions, which are
flags. The text of the page between ``<!-- costs -->``, ``<!-- assumptions -->`` or ``<!-- spread -->`` and
``<!-- end -->`` is replaced.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from mhe_fairseq.coding import Codebook, plan_lengths  # noqa: E402
from mhe_fairseq.heads.cascade.head import SMOOTHING_GROUPS, SMOOTHING_PARTS  # noqa: E402
from mhe_fairseq.heads.sampling.group_sample import inclusion_probabilities, sample_groups  # noqa: E402
from mhe_fairseq.heads.sampling.head import PARTS, default_groups  # noqa: E402
from scripts.common.files import write_whole  # noqa: E402

VOCABULARIES = (32_768, 262_144, 1_048_576, 10_000_000)
BLOCK = re.compile(r"(<!-- (costs|assumptions|spread) -->\n).*?(<!-- end -->)", re.DOTALL)
GIB = 2**30


@dataclass(frozen=True)
class Assumptions:
    """What is assumed of the machines and of the training. ``help`` of a flag is its line here."""

    nodes: int = 8  #: nodes
    per_node: int = 8  #: GPUs in a node
    tokens: int = 4096  #: tokens of a GPU's batch that get a loss, in an update
    dim: int = 1024  #: d, width of the features
    peak: float = 312e12  #: peak FLOP/s of a GPU in half precision
    utilisation: float = 0.4  #: share of the peak that large matrix products reach
    memory: float = 80.0  #: GB of memory of a GPU
    memory_speed: float = 2.0e12  #: bytes/s to and from that memory
    inside: float = 200e9  #: bytes/s between GPUs of a node, each way, a GPU
    outside: float = 20e9  #: bytes/s between nodes, each way, a GPU
    state: float = 20.0  #: bytes a parameter: half weight and gradient, fp32 copy, gradient, two moments
    optimiser: float = 34.0  #: bytes read and written a parameter by the optimiser's step
    logit: float = 12.0  #: bytes a logit: half and fp32, with the gradient of each

    @property
    def gpus(self) -> int:
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Cost:
    """Of one output layer, for one GPU and one update.

    Attributes:
        layer: its name.
        parameters: on this GPU.
        held: bytes of logits, and of features that came from other GPUs, with their gradients.
        flops: forward and backward, mean over the GPUs.
        sent: bytes sent, mean over the GPUs.
        reduced: how many of them are of all-reduces and all-gathers, the rest of all-to-alls.
        busiest: work of the busiest GPU over the mean.
    """

    layer: str
    parameters: float
    held: float
    flops: float
    sent: float
    reduced: float
    busiest: float = 1.0

    def state(self, a: Assumptions) -> float:
        return self.parameters * a.state

    def compute_time(self, a: Assumptions) -> float:
        return self.flops * self.busiest / (a.peak * a.utilisation)

    def optimiser_time(self, a: Assumptions) -> float:
        return self.parameters * a.optimiser / a.memory_speed

    def wire_time(self, a: Assumptions) -> float:
        """In an all-reduce or all-gather a number crosses a node's border once, and the links of all its GPUs
        share the work. What is sent all to all goes its own way, over the link of the GPU it is of."""
        if a.gpus == 1:
            return 0.0
        shared = min(a.inside, a.per_node * a.outside) if a.nodes > 1 else a.inside
        near = (a.per_node - 1) / (a.gpus - 1)
        exchanged = (self.sent - self.reduced) * self.busiest
        return self.reduced / shared + exchanged * max(near / a.inside, (1 - near) / a.outside)

    def time(self, a: Assumptions) -> float:
        return self.compute_time(a) + self.optimiser_time(a) + self.wire_time(a)


# ---- what goes over the wire


def all_reduced(numbers: float, ranks: int, width: int = 2) -> float:
    """Bytes a rank sends in a ring all-reduce of ``numbers`` numbers of ``width`` bytes."""
    return 2 * (ranks - 1) / ranks * numbers * width


def owners(groups: float, ranks: int) -> float:
    """Expected number of ranks that hold ``groups`` groups which lie anywhere."""
    return ranks * (1 - (1 - 1 / ranks) ** groups)


def exchanged(
    tokens: float, groups: float, ranks: int, width: int, value: int = 2, columns: int = 3
) -> float:
    """Bytes a rank sends in an update to have its tokens scored on groups of a table split over ranks, and to
    do so for the others, forward and backward: ``message_bytes`` of the rows and pairs that leave a rank."""
    away = (ranks - 1) / ranks
    rows, pairs = tokens * owners(groups, ranks) * away, tokens * groups * away
    return message_bytes(rows, pairs, width, value, columns)


def message_bytes(rows: float, pairs: float, width: int, value: int, columns: int) -> float:
    """Bytes of an exchange (heads/sharded/level.py): every row goes there and its gradient comes back; every
    pair of a row and a group is three 8-byte numbers, its answer ``columns`` fp32 numbers, and so is the
    gradient of these.

    Args:
        rows: of the features, that go to other ranks.
        pairs: of such a row and a group.
        width: numbers in a row.
        value: bytes of one of them.
        columns: numbers in an answer.
    """
    return 2 * rows * width * value + pairs * (3 * 8 + 2 * columns * 4)


# ---- how evenly the work is spread


@functools.cache
def group_shares(lengths: tuple[int, int], vocab: int, shuffled: bool) -> Tensor:
    """Share of the text of each group, by Zipf's law over the order of tokens: tokens in the order of the
    dictionary, or shuffled. Shape: (L_1,) float64."""
    mass = 1.0 / (torch.arange(vocab, dtype=torch.float64) + 4.0)
    slots = torch.arange(vocab)
    if shuffled:
        slots = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))
    shares = torch.zeros(lengths[0], dtype=torch.float64)
    return shares.index_add_(0, slots.div(lengths[1], rounding_mode="floor"), mass / mass.sum())


@functools.cache
def busiest(lengths: tuple[int, int], ranks: int, drawn: int, head: str, shuffled: bool, vocab: int) -> float:
    """Work of the busiest rank over the mean: it holds the gold groups of some share of the text, and some of
    the groups drawn for the parts of a batch, each of which is scored for a part of all tokens.

    Mean over 100 draws (seeded), groups drawn as ``head`` ("cascade", "sampling") does.
    """
    shares = group_shares(lengths, vocab, shuffled)
    ends = torch.tensor([(rank + 1) * lengths[0] // ranks for rank in range(ranks)])
    rank_of = torch.bucketize(torch.arange(lengths[0]), ends, right=True)
    gold = torch.zeros(ranks, dtype=torch.float64).index_add_(0, rank_of, shares)
    generator = torch.Generator().manual_seed(1)
    most = 0.0
    for _ in range(100):
        if head == "cascade":
            parts, groups = (
                SMOOTHING_PARTS,
                torch.randint(lengths[0], (drawn * SMOOTHING_PARTS,), generator=generator),
            )
        else:
            parts, inclusion = PARTS, inclusion_probabilities(0.5 * shares + 0.5 / lengths[0], drawn)
            groups = torch.from_numpy(np.concatenate(sample_groups(inclusion.numpy(), generator, PARTS)))
        load = gold + torch.bincount(rank_of[groups], minlength=ranks) / parts
        most += float(load.max()) * ranks / (1 + drawn) / 100
    return most


# ---- the layers


def costs(vocab: int, a: Assumptions) -> list[Cost]:
    """Of every output layer for V tokens."""
    n, d, w = a.tokens, a.dim, a.gpus
    first, length = plan_lengths(vocab)
    lengths = (first, length)
    dense = 6.0 * n * vocab * d
    everyones = (w - 1) * n * d * 2 * 2.0  # features of all, and their gradients
    rows = [
        Cost("softmax, replicated", vocab * d, n * vocab * a.logit, dense, all_reduced(vocab * d, w),
             all_reduced(vocab * d, w)),
        # Four numbers a token are summed over the ranks: largest logit, sum, target's and mean logit.
        Cost("softmax, vocabulary split", vocab * d / w, n * vocab * a.logit + w * n * d * 4.0, dense,
             everyones + all_reduced(4 * n * w, w, 4), everyones + all_reduced(4 * n * w, w, 4)),
    ]  # fmt: skip
    small = (first + 1) * d
    scored = first + (1 + SMOOTHING_GROUPS) * length
    cascade = 6.0 * n * scored * d
    rows.append(
        Cost(
            "cascade, replicated",
            small + first * length * d,
            n * scored * a.logit,
            cascade,
            all_reduced(small + first * length * d, w),
            all_reduced(small + first * length * d, w),
        )  # fmt: skip
    )
    asked = 1 + SMOOTHING_GROUPS
    peak = busiest(lengths, w, SMOOTHING_GROUPS, "cascade", True, vocab)
    held = n * first * a.logit + peak * n * (asked * length * a.logit + owners(asked, w) * d * 4.0)
    rows.append(
        Cost(
            "cascade, split",
            small + first * length * d / w,
            held,
            cascade,
            exchanged(n, asked, w, d) + all_reduced(small, w),
            all_reduced(small, w),
            peak,
        )  # fmt: skip
    )
    drawn = drawn_groups(vocab)
    asked = 1 + drawn
    sampling = 6.0 * n * asked * length * d
    rows.append(
        Cost(
            "sampling, replicated",
            vocab * d,
            n * asked * length * a.logit,
            sampling,
            all_reduced(vocab * d, w),
            all_reduced(vocab * d, w),
        )  # fmt: skip
    )
    peak = busiest(lengths, w, drawn, "sampling", True, vocab)
    held = peak * n * (asked * length * a.logit + owners(asked, w) * d * 4.0)
    mean_row = 2 * all_reduced(d, w, 4)
    rows.append(
        Cost(
            "sampling, split",
            first * length * d / w,
            held,
            sampling,
            exchanged(n, asked, w, d, columns=2) + mean_row,
            mean_row,
            peak,
        )  # fmt: skip
    )
    return rows


@functools.cache
def drawn_groups(vocab: int) -> int:
    """What the sampling head draws when not told."""
    return default_groups(Codebook(plan_lengths(vocab), vocab_size=vocab)) or 1


# ---- tables


def table(a: Assumptions) -> list[str]:
    lines = [
        "| V | output layer | weights, gradients, Adam | logits, features | TFLOP | sent | products | Adam "
        "| wire | sum |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for vocab in VOCABULARIES:
        for cost in costs(vocab, a):
            total = cost.state(a) + cost.held
            fits = total <= a.memory * 1e9
            lines.append(
                f"| {vocab:,} | {cost.layer} | {_gib(cost.state(a))} | {_gib(cost.held)} | "
                f"{_short(cost.flops / 1e12)} | {_gib(cost.sent)} | {_ms(cost.compute_time(a))} | "
                f"{_ms(cost.optimiser_time(a))} | {_ms(cost.wire_time(a))} | "
                + (f"{_ms(cost.time(a))} |" if fits else "does not fit |")
            )
    return lines


def assumptions(a: Assumptions) -> list[str]:
    lines = ["| assumed | value |", "| --- | ---: |"]
    for name, text in _texts().items():
        lines.append(f"| {text} (`--{name.replace('_', '-')}`) | {getattr(a, name):,g} |")
    return lines


def spread(a: Assumptions) -> list[str]:
    lines = [
        "| V | groups x tokens | cascade, dictionary order | cascade, shuffled | sampling of G, shuffled |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for vocab in VOCABULARIES:
        first, length = lengths = plan_lengths(vocab)
        drawn = drawn_groups(vocab)
        of_cascade = [
            busiest((first, length), a.gpus, SMOOTHING_GROUPS, "cascade", shuffled, vocab)
            for shuffled in (False, True)
        ]
        of_sampling = busiest((first, length), a.gpus, drawn, "sampling", True, vocab)
        lines.append(
            f"| {vocab:,} | {' x '.join(f'{each:,}' for each in lengths)} | {of_cascade[0]:.1f} | "
            f"{of_cascade[1]:.1f} | {of_sampling:.1f} (G = {drawn}) |"
        )
    return lines


def filled(page: str, a: Assumptions) -> str:
    """The page with every block made anew."""
    made = {"costs": table, "assumptions": assumptions, "spread": spread}

    def block(match: re.Match[str]) -> str:
        return match[1] + "\n" + "\n".join(made[match[2]](a)) + "\n\n" + match[3]

    return BLOCK.sub(block, page)


def _texts() -> dict[str, str]:
    """What each assumption is, from the comments beside it."""
    source = Path(__file__).read_text(encoding="utf-8")
    return {
        each.name: found[1]
        for each in fields(Assumptions)
        if (found := re.search(rf"^    {each.name}: .*#: (.*)$", source, re.MULTILINE))
    }


def _gib(amount: float) -> str:
    return f"{_short(amount / GIB)} GiB"


def _ms(seconds: float) -> str:
    return f"{_short(1000 * seconds)} ms"


def _short(value: float) -> str:
    """Two digits or three."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="markdown to fill (default: print the table)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page would change")
    for each in fields(Assumptions):
        kind = int if isinstance(each.default, int) else float
        parser.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=kind,
            default=each.default,
            help=f"{_texts()[each.name]} (default: {each.default:g})",
        )
    args = parser.parse_args(argv)
    a = Assumptions(**{each.name: getattr(args, each.name) for each in fields(Assumptions)})
    bad = [each.name for each in fields(Assumptions) if not getattr(a, each.name) > 0]
    if bad:
        name = bad[0]
        return _failed(f"--{name.replace('_', '-')} must be above 0, got {getattr(a, name):g}")
    smallest = min(plan_lengths(vocab)[0] for vocab in VOCABULARIES)
    if a.gpus > smallest:
        return _failed(f"{a.gpus} GPUs are more than the {smallest} groups of {min(VOCABULARIES):,} tokens")
    if args.page is None:
        print("\n".join(table(a)))
        return 0
    if not args.page.is_file():
        return _failed(f"there is no page {args.page}")
    old = args.page.read_text(encoding="utf-8")
    new = filled(old, a)
    if args.check and new != old:
        return _failed(f"{args.page} is not what this calculates; run it without --check")
    if new != old:
        write_whole(args.page, [new.encode()])
    return 0


def _failed(text: str) -> int:
    print(f"scale_costs.py: error: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
