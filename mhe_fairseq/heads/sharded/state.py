"""From a head's shards to the whole head's state, and back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.sharded.level import ShardedLevel
from mhe_fairseq.heads.sharded.shards import Shard


def names_of_parts(model: nn.Module) -> list[str]:
    """Parameters and buffers of a model that differ between ranks: torch's ``DistributedDataParallel`` leaves
    them alone where they are listed in the model's ``_ddp_params_and_buffers_to_ignore``."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, ShardedLevel):
            inside = [*module.named_parameters(name), *module.named_buffers(name)]
            found += [each for each, _ in inside]
    return found


class ShardedHead(nn.Module):
    """Before a head that has a part of a table.

    ``state_dict`` is of the part. ``load_state_dict`` takes a part, or the state of a whole head, of which it
    takes its part.

    Attributes:
        sharded_name: the part's name in this head's state dict.
        whole_name: the table's in the whole head's.

    Args:
        dim, codebook, and by name: as for the whole head.
        shard: which groups are this rank's.
        tied: must be None.

    Raises:
        MHEError: as the whole head; fewer groups than ranks; ``tied``.
    """

    sharded_name: str
    whole_name: str
    codebook: Codebook
    shard: Shard

    def __init__(
        self, dim: int, codebook: Codebook, shard: Shard, tied: nn.Embedding | None = None, **kwargs: Any
    ) -> None:
        if tied is not None:
            raise MHEError(
                "a table that is split over ranks cannot be tied to an embedding, which every rank has whole"
            )
        if kwargs.get("variant") == "predicted":
            raise MHEError("a table that is split over ranks draws groups for a batch, not for each token")
        self.shard = shard  # read while the parts are made
        super().__init__(dim, codebook, **kwargs)  # the whole head's

    @property
    def sharded(self) -> ShardedLevel:
        """What is split."""
        raise NotImplementedError

    def own_rows(self, whole: Tensor) -> Tensor:
        """This rank's part of a table, or of what an optimiser keeps for one: as ``whole_name`` is ->
        as ``sharded_name`` is."""
        return self.sharded.cut(whole)

    def join_rows(self, parts: list[Tensor]) -> Tensor:
        """All ranks' parts -> the whole table."""
        return torch.cat(parts)

    def gather_rows(self, own: Tensor) -> Tensor | None:
        """The whole of what every rank has a part of, on the CPU of rank 0; None on the others. Collective.

        Args:
            own: of the shape of this rank's part.
        """
        level, shard = self.sharded, self.shard
        if shard.rank:
            dist.send(own.contiguous(), shard.global_rank(0), group=shard.group)
            return None
        parts = [own.cpu()]
        for rank in range(1, shard.size):
            count = level.starts[rank + 1] - level.starts[rank]
            part = own.new_empty(count, *own.shape[1:])
            dist.recv(part, shard.global_rank(rank), group=shard.group)
            parts.append(part.cpu())
        return self.join_rows(parts)

    def whole_state(self) -> dict[str, Any] | None:
        """The state dict of the whole head, on rank 0; None on the others. Collective."""
        table = self.gather_rows(self.sharded.weight.detach())
        if table is None:
            return None
        state = dict(self.state_dict())
        del state[self.sharded_name]
        return {**state, self.whole_name: table}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The codebook first: where a token's row is hangs on it.
        super()._load_from_state_dict(state_dict, prefix, *args)
        whole = state_dict.get(prefix + self.whole_name)
        if whole is not None and whole.shape != self.sharded.weight.shape:
            del state_dict[prefix + self.whole_name]
            state_dict[prefix + self.sharded_name] = self.own_rows(whole)
