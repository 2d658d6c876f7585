"""A cascade whose table of local rows is split over ranks by groups."""

from __future__ import annotations

from torch import Tensor, nn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import OutputHead
from mhe_fairseq.heads.cascade.head import CascadeHead
from mhe_fairseq.heads.cascade.level import Level
from mhe_fairseq.heads.labels import Labels
from mhe_fairseq.heads.sharded.level import ShardedLevel
from mhe_fairseq.heads.sharded.state import ShardedHead


class ShardedCascadeHead(ShardedHead, CascadeHead):
    """``CascadeHead`` with the rows of the last digit on the ranks that hold their groups.

    Every rank has a batch of its own, of any size, 0 too. What it gets is what ``CascadeHead`` gives for this
    batch; the table's gradient is the sum over all ranks, that of all else is of the rank's own batch, to
    be summed or averaged as gradients are in data parallel training. What is drawn for smoothing hangs on the
    update alone, and only the rank of the batch draws.

    Everything that reads the table is collective: ``forward``, ``log_prob``, ``log_probs``, ``topk``,
    ``log_prob_of``. ``log_probs`` brings N x V numbers from where they are, ``topk`` N x k from every rank.

    Arguments are those of ``CascadeHead``, and ``shard``; ``tied`` must be None.

    Args:
        shard: which groups are this rank's.

    Raises:
        MHEError: as ``CascadeHead``; fewer groups than ranks; ``tied``.
    """

    local: ShardedLevel
    # The best tokens, yes; but a search asks in some ranks more often than in others.
    finds_best = searches_beams = False
    beam_candidates = OutputHead.beam_candidates
    whole_name = sharded_name = "local.table"

    @property
    def sharded(self) -> ShardedLevel:
        return self.local

    def label_loss(self, features: Tensor, labels: Labels) -> Tensor:
        raise MHEError("a loss of several labels is not offered by a head split over ranks")

    def multilabel_scores(self, features: Tensor, top_groups: int) -> tuple[Tensor, Tensor]:
        raise MHEError("multi-label scores are not offered by a head split over ranks; join it first")

    def multilabel_loss(self, features: Tensor, targets: Labels, top_groups: int) -> Tensor:
        raise MHEError("a multi-label loss is not offered by a head split over ranks")

    def _last_level(self, prefixes: int, length: int, width: int, tied: nn.Embedding | None) -> Level:
        level = ShardedLevel(prefixes, length, width, self.codebook.lengths[0], self.shard)
        level.draw()
        return level

    def best_by_groups(self, groups: Tensor, inputs: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
        if self.subgroup is not None:
            groups = (groups.unsqueeze(-1) + self.subgroup.all_log_softmax(inputs[0])).flatten(1)
        best, slots = self.local.best(inputs[-1], k, groups)
        return best, self.token_of_slot(slots).clamp(min=0)

    def _codebook_changed(self) -> None:
        super()._codebook_changed()
        self.local.set_fingerprint(self.codebook.fingerprint)
