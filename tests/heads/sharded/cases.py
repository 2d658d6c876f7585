"""All cases that each rank runs for ``test_sharded.py``, by name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch

from tests.heads.sharded.messages import a_part_of_the_ranks, counted, message_by_message, under_torchs_ddp
from tests.heads.sharded.pairs import HEADS, SAMPLINGS
from tests.heads.sharded.refusals import different_codebooks, different_widths, not_split, too_many_ranks
from tests.heads.sharded.values import (
    adopt,
    autocast,
    compare,
    empty_rank,
    evaluate,
    initial,
    log_probs_are_differentiable,
    train,
)


def all_cases(size: int) -> dict[str, Callable[[], None]]:
    """What ``size`` ranks run. Losses in float32 or without smoothing are left to two, and most codebooks."""
    cases: dict[str, Callable[[], None]] = {}
    kinds, two = ("some", "none on one rank", "none anywhere"), size == 2
    losses = [(torch.float64, True)]
    if two:
        losses += [(torch.float64, False), (torch.float32, True)]
    for number, name in enumerate(HEADS):
        for at, kind in enumerate(kinds):
            for dtype, smoothing in losses:
                text = f"{name}: loss, {kind}, {dtype}, {'smoothed' if smoothing else 'plain'}"
                cases[text] = functools.partial(compare, name, kind, dtype, smoothing, 10 * number + at)
            cases[f"{name}: evaluation, {kind}"] = functools.partial(
                evaluate, name, kind, torch.float64, number + at
            )
        cases[f"{name}: loss in eval mode"] = functools.partial(
            compare, name, "some", torch.float64, True, number, False
        )
        cases[f"{name}: evaluation in float32"] = functools.partial(
            evaluate, name, "some", torch.float32, number
        )
        if name in SAMPLINGS:
            for at, kind in enumerate(kinds):
                cases[f"{name}: exact loss in training, {kind}"] = functools.partial(
                    compare, name, kind, torch.float64, True, 10 * number + at, exact=True
                )
        for more in range(4 if two else 2):
            cases[f"{name}: loss, another codebook, {more}"] = functools.partial(
                compare, name, "some", torch.float64, True, 100 + 10 * number + more
            )
        cases[f"{name}: log_probs' gradients"] = functools.partial(log_probs_are_differentiable, name, number)
        cases[f"{name}: updates"] = functools.partial(train, name, number)
        cases[f"{name}: initial weights"] = functools.partial(initial, name)
        cases[f"{name}: adopted codebook"] = functools.partial(adopt, name)
        cases[f"{name}: autocast"] = functools.partial(autocast, name)
    cases["cascade: a rank without tokens"] = functools.partial(empty_rank, "cascade")
    cases["sampling: a rank without tokens"] = functools.partial(empty_rank, "sampling")
    cases["cascade: bytes sent"] = functools.partial(counted, "cascade")
    cases["sampling: bytes sent"] = functools.partial(counted, "sampling")
    for case in (
        under_torchs_ddp,
        message_by_message,
        a_part_of_the_ranks,
        too_many_ranks,
        different_codebooks,
    ):
        cases[case.__name__] = case
    cases["different_widths"], cases["not_split"] = different_widths, not_split
    return cases


if __name__ == "__main__":
    from tests.heads.sharded.run import main

    main(all_cases(int(sys.argv[2])))
