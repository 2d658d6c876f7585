"""Which rank of a process group holds which groups of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mhe_fairseq.errors import MHEError


@dataclass(frozen=True)
class Shard:
    """One rank's place among those that share a table: groups (first digits) are dealt out in order, as
    evenly as they go, rank r of W has groups r G // W .. (r + 1) G // W - 1 of G.

    Attributes:
        rank: r.
        size: W.
        group: the process group, None for all processes.
    """

    rank: int
    size: int
    group: Any = None

    @classmethod
    def of(cls, group: Any = None) -> Shard:
        """This process's.

        Raises:
            MHEError: ``torch.distributed`` was not initialised.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise MHEError(
                "a table is split over the ranks of torch.distributed, which is not initialised in this "
                "process; call torch.distributed.init_process_group first"
            )
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shard:
        # A process group is no thing to copy.
        return self

    def bounds(self, groups: int) -> list[int]:
        """Where each rank's groups begin, and G: W + 1 numbers.

        Raises:
            MHEError: fewer groups than ranks.
        """
        if groups < self.size:
            raise MHEError(
                f"a table of {groups} groups cannot be split over {self.size} ranks, each of which has to "
                f"hold one at least; use at most {groups} ranks, or a codebook whose first length is "
                f"{self.size} or more"
            )
        return [rank * groups // self.size for rank in range(self.size + 1)]

    def global_rank(self, rank: int) -> int:
        """What a rank of ``group`` is called among all processes."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def normal_blocks(count: int, std: float, size: int = 2**20) -> Iterator[tuple[int, Tensor]]:
    """Normal numbers as ``torch.Tensor.normal_`` draws them for a tensor of ``count``, block by block, so
    that nobody has to hold them all.

    torch draws them in sixteens, the last ones anew where sixteen does not divide ``count``: so blocks are of
    a multiple of sixteen, and the last one is not of fewer.

    Args:
        count: numbers in all.
        std: standard deviation.
        size: of a block, a multiple of 16; the last one may be longer.

    Yields:
        (begin, (n,) fp32).
    """
    begin = 0
    while begin < count:
        end = count if count - begin < size + 16 else begin + size
        yield begin, torch.empty(end - begin).normal_(0.0, std)
        begin = end


def check_same(mine: Tensor, everyones: Tensor) -> None:
    """Compare what ranks say of their heads.

    Args:
        mine: (2,) long: fingerprint of the codebook (``fingerprint_number``), width of the rows.
        everyones: (W, 2) long.

    Raises:
        MHEError: on every rank, if any two differ.
    """
    if bool((everyones == mine).all()):
        return
    books = [f"{number % 2**64:016x}" for number in everyones[:, 0].tolist()]
    widths = everyones[:, 1].tolist()
    if len(set(books)) > 1:
        told = ", ".join(f"rank {rank} has {book}" for rank, book in enumerate(books))
        raise MHEError(
            f"the ranks have different codebooks, by their fingerprints: {told}; give all of them the same "
            "one"
        )
    told = ", ".join(f"rank {rank} has {width}" for rank, width in enumerate(widths))
    raise MHEError(f"the ranks that share a table have rows of different widths: {told}; they must be equal")


def fingerprint_number(fingerprint: str) -> int:
    """A codebook's fingerprint, 16 hex characters, as a signed 64-bit number."""
    number = int(fingerprint, 16)
    return number - 2**64 if number >= 2**63 else number
