"""A soft-max trained on samples whose table is split over ranks by groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhe_fairseq.heads.base import HeadLoss, OutputHead, wide
from mhe_fairseq.heads.sampling.head import SamplingHead
from mhe_fairseq.heads.sharded.level import ShardedLevel
from mhe_fairseq.heads.sharded.shards import normal_blocks
from mhe_fairseq.heads.sharded.state import ShardedHead


class ShardedSamplingHead(ShardedHead, SamplingHead):
    """``SamplingHead`` with the rows of tokens on the ranks that hold their groups.

    As ``ShardedCascadeHead``: batches of any size, values and gradients of ``SamplingHead``, everything that
    reads the table is collective. The groups of a batch are drawn by its rank; what is drawn hangs on the
    update alone, so all ranks draw the same. The exact loss has every rank score every row on its own tokens.

    A rank's rows are a table (groups, tokens a group, d) with rows of zeros at holes.

    Arguments are those of ``SamplingHead``, and ``shard``; ``tied`` must be None.

    Args:
        shard: which groups are this rank's.

    Raises:
        MHEError: as ``SamplingHead``; fewer groups than ranks; ``tied``; variant "predicted".
    """

    table: ShardedLevel  # type: ignore[assignment]
    # A search asks in some ranks more often than in others.
    why_wide, read = OutputHead.why_wide, OutputHead.read
    sharded_name = "table.table"
    whole_name = "table.linear.weight"

    @property
    def sharded(self) -> ShardedLevel:
        return self.table

    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        device = features.device.type
        if torch.is_autocast_enabled(device) and features.dtype != torch.float64:
            features = features.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            x = self._angular(features)
            if self.samples:
                return self._sampled_loss(x, target, smoothing, accuracy)
            plain = self.table.pair_scores(x, *self._place(target)).picked
            gold, mean = self._with_margin(plain, self._mean(x) if smoothing else plain)
            if self.margin is not None and self.training:
                others = self.table.log_sums(x, self.chunk, but=self.codebook_slots[target])
                log_z = torch.logaddexp(others, gold)
            else:
                log_z = self.table.log_sums(x, self.chunk)
            stats = {}
            if accuracy:
                stats["accuracy"] = self.topk(features, 1)[1].squeeze(-1).eq(target).to(log_z.dtype)
            return self._as_sampled(HeadLoss(log_z - gold, log_z - mean if smoothing else None, stats))

    def log_probs(self, features: Tensor) -> Tensor:
        x = self._angular(features)
        logits = self.table.all_logits(x).flatten(1)
        return logits.index_select(-1, self.codebook_slots).log_softmax(dim=-1)

    @torch.no_grad()
    def topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best tokens; each rank finds those of its own groups. Not differentiable."""
        self._check_k(k)
        x = self._angular(features)
        best, slots = self.table.best(x, k)
        log_z = self.table.log_sums(x)
        return best - log_z.unsqueeze(-1), self.token_of_slot(slots).clamp(min=0)

    def _sampled_loss(self, x: Tensor, target: Tensor, smoothing: bool, accuracy: bool) -> HeadLoss:
        gold_group, count = self.group_of_token[target], len(x)
        groups, rows = self._meets(gold_group).nonzero(as_tuple=True)
        is_home = groups == gold_group[rows]
        home = rows[is_home]
        is_shared = self.variant == "shared"
        digit = self._place(target)[2][rows]
        if self.margin is not None:
            digit = digit.where(is_home, -1)
        scores = self.table.pair_scores(
            x,
            self.drawn_from(rows.device)[0][groups],
            rows,
            digit,
            mean=smoothing and not is_shared,
            best=accuracy,
        )
        log_weight = self.log_weights(rows.device, scores.log_sum.dtype)[groups]
        log_weight[is_home] = 0.0  # the gold group is in every sample
        log_z = _logsumexp_by_row(scores.log_sum + log_weight, rows, count)
        plain = torch.zeros_like(log_z).index_copy(0, home, scores.picked[is_home])
        gold = plain if self.margin is None else self.margin.target(plain)
        nll = log_z - gold
        smooth = None
        if smoothing:
            if scores.mean is None:
                mean = self._with_margin(plain, self._mean(x))[1]
            else:
                sizes = self._sizes.to(rows.device)[groups].to(log_z.dtype)
                sums = torch.zeros_like(log_z).index_add(0, rows, scores.mean * sizes)
                if self.margin is not None:
                    sums = sums + (gold - plain)
                mean = sums / torch.zeros_like(log_z).index_add(0, rows, sizes)
            smooth = log_z - mean
        stats = {"sampled_nll": nll.detach()}
        if scores.largest is not None:
            stats["sampled_accuracy"] = plain.detach().ge(_most(scores.largest, rows, count)).to(nll.dtype)
        return HeadLoss(nll, smooth, stats)

    def _mean(self, features: Tensor) -> Tensor:
        """Mean logit of all V tokens. Shape: (N, d) -> (N,)."""
        return wide(features) @ self.table.mean_row(self.vocab_size)

    def _place(self, target: Tensor) -> tuple[Tensor, None, Tensor]:
        """Where the rows of tokens are: their first digit, and their place in its slots. Shape: (N,)."""
        slots, length = self.codebook_slots[target], self.table.length
        return slots.div(length, rounding_mode="floor"), None, slots % length

    def _make_table(self, tied: nn.Embedding | None) -> None:
        book = self.codebook
        groups = book.lengths[0]
        self.table = ShardedLevel(groups, book.size // groups, self.dim, groups, self.shard, self.margin)
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        """Initialise as the whole head does with the same random generator, which ends up where it would."""
        table = self.table.table.zero_().flatten(0, 1)
        first = self.table.first * self.table.length
        numbers = self.vocab_size * self.dim
        step = 1024 * self.dim
        for begin in range(0, numbers, step):
            # nn.Linear draws once before: see OutputTable.
            torch.empty(min(step, numbers - begin)).uniform_()
        for begin, block in normal_blocks(numbers, self.dim**-0.5, step):
            rows = block.view(-1, self.dim)
            tokens = torch.arange(begin // self.dim, begin // self.dim + len(rows))
            place = self.codebook.slots[tokens] - first
            own = (place >= 0) & (place < len(table))
            table[place[own]] = rows[own]

    def _codebook_changed(self) -> None:
        super()._codebook_changed()
        book = self.codebook
        counts = (book.token_of_slot >= 0).long().view(book.lengths[0], -1)
        self.table.set_tokens(counts, book.token_of_slot)
        self.table.set_fingerprint(book.fingerprint)
        self._first_digits = book.slots.div(self.table.length, rounding_mode="floor").unique()

    def own_rows(self, whole: Tensor) -> Tensor:
        table = whole.new_zeros(self.codebook.size, *whole.shape[1:])
        table[self.codebook.slots] = whole
        return self.table.cut(table.unflatten(0, (-1, self.table.length)))

    def join_rows(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).flatten(0, 1)[self.codebook.slots]


def _most(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """The largest value of every row. Shape: (R,), (R,) long -> (count,)."""
    return values.new_full((count,), -torch.inf).scatter_reduce(0, rows, values, "amax")


def _logsumexp_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Shape: (R,), (R,) long, with every row -> (count,)."""
    most = _most(values.detach(), rows, count)
    sums = torch.zeros_like(most).index_add(0, rows, (values - most[rows]).exp())
    return most + sums.log()
