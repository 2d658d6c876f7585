"""The ranks of a training must have the same head, of the same codebook: found out before it begins.

A codebook file is read on every machine by itself. With another one on one machine the losses of ranks would
be about other digits, and nothing would tell.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.options import HeadOptions


def agreed(resolve: Callable[[], HeadOptions]) -> HeadOptions:
    """What ``resolve`` gives, once every rank has the same.

    Where there are several ranks, all of them call this together.

    Raises:
        MHEError: on every rank: an error of one of them, or that they differ, and in what.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return resolve()
    options, error = None, None
    try:
        options = resolve()
    except MHEError as failed:
        error = failed
    mine = {"error": str(error)} if options is None else described(options)
    everyone: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    if error is not None:
        raise error
    assert options is not None
    for rank, theirs in enumerate(everyone):
        if "error" in theirs:
            raise MHEError(f"rank {rank}: {theirs['error']}")
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs[name] != value:
                raise MHEError(
                    f"the ranks have different {name}: {value} on rank 0, {theirs[name]} on rank {rank}; "
                    "give every machine the same files and flags"
                )
    return options


def described(options: HeadOptions) -> dict[str, str]:
    """What all ranks must have alike."""
    book = options.codebook
    return {
        "heads": options.head,
        "dictionaries": f"{len(book)} tokens of fingerprint {book.dictionary}",
        "codebooks": f"{'x'.join(map(str, book.lengths))} of fingerprint {book.fingerprint}",
        "--mhe-* flags": options.flags(),
    }
