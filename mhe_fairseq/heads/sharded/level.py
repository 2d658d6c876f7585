"""The table of a cascade's last digit, or of a soft-max, split over ranks by groups.

A rank holds the rows of its own groups. Features go to where the rows are, numbers come back: a pair of a
row of the features and a group costs the d numbers of that row (once for all groups of one rank) and three
numbers back, and as much for their gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.heads.base import wide
from mhe_fairseq.heads.cascade.level import Level, PairScores
from mhe_fairseq.heads.grouped import Pairs
from mhe_fairseq.heads.margin import Margin, inverse_lengths, unit
from mhe_fairseq.heads.pieces import loss_in_pieces
from mhe_fairseq.heads.sharded.exchange import Exchange, exchanges, total_over_ranks
from mhe_fairseq.heads.sharded.shards import Shard, fingerprint_number, normal_blocks

#: At most about this many logits are held at once where no gradient is wanted.
_HELD = 2**24


class ShardedLevel(Level):
    """A ``Level`` of P prefixes, of which this rank holds ``first`` .. ``first + own`` - 1.

    Prefixes are numbered as in the whole level. ``loss``, ``logits``, ``log_softmax``, ``all_log_softmax``
    and what is added here are collective: all ranks call them, in the same order, each with rows of its own,
    as many as it likes. Their values are those of the whole level, and so are the gradients: of x those of
    this rank's rows, of the table the sum over all ranks' rows. ``weight``, ``counts``, ``possible`` and the
    state dict are of the rank's own prefixes.

    Args:
        prefixes: P.
        length: L.
        dim: width of the features.
        groups: L_1, first digits; P is a multiple of it.
        shard: this rank.
        margin: features are those of the margin, and logits are divided by the rows' lengths. Of a pair the
            digit picked is told without the margin and has it in the log-sum-exp; -1 is no digit to pick.

    Raises:
        MHEError: fewer groups than ranks; while running, ranks with different codebooks.
    """

    bounds: Tensor

    def __init__(
        self,
        prefixes: int,
        length: int,
        dim: int,
        groups: int,
        shard: Shard,
        margin: Margin | None = None,
    ) -> None:
        below = prefixes // groups
        bounds = [bound * below for bound in shard.bounds(groups)]
        first, end = bounds[shard.rank : shard.rank + 2]
        # What it draws for its rows is replaced by what the whole level would draw.
        with torch.random.fork_rng(devices=[]):
            super().__init__(end - first, length, dim)
        self.prefixes = prefixes
        self.margin = margin
        self.first = first
        self.own = end - first
        self.most = max(b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True))
        self.shard = shard
        self.starts = bounds
        self.register_buffer("bounds", torch.tensor(bounds), persistent=False)
        #: What all ranks have to say alike.
        self.book = 0

    @torch.no_grad()
    def draw(self) -> None:
        """Initialise as the whole level does with the same random generator, which ends up where it would."""
        flat = self.table.flatten()
        width = self.length * self.table.size(-1)
        first, end = self.first * width, (self.first + self.own) * width
        for begin, numbers in normal_blocks(self.prefixes * width, self.table.size(-1) ** -0.5):
            a, b = max(begin, first), min(begin + len(numbers), end)
            if a < b:
                flat[a - first : b - first] = numbers[a - begin : b - begin]

    def set_tokens(self, counts: Tensor, token_of_slot: Tensor) -> None:
        """Of the whole level. Shape: (P, L), (P * L,)."""
        super().set_tokens(counts[self.first : self.first + self.own], token_of_slot)

    def set_fingerprint(self, fingerprint: str) -> None:
        """Of the codebook: compared between ranks whenever they talk."""
        self.book = fingerprint_number(fingerprint)

    def pair_scores(
        self,
        x: Tensor,
        prefix: Tensor,
        rows: Tensor | None,
        digit: Tensor,
        mean: bool = False,
        best: bool = False,
    ) -> PairScores:
        part = super().pair_scores

        def score(x: Tensor, prefix: Tensor, rows: Tensor, digit: Tensor) -> Tensor:
            found = part(x, prefix, rows, digit, mean, best)
            return torch.stack([value for value in found if value is not None], dim=-1)

        columns = list(self._at_owners(x, prefix, rows, digit, score).unbind(-1))
        log_sum, picked = columns[:2]
        largest, right = (columns[-2].detach(), columns[-1].detach()) if best else (None, None)
        return PairScores(log_sum, picked, columns[2] if mean else None, largest, right)

    def logits(self, x: Tensor, prefix: Tensor, rows: Tensor) -> Tensor:
        part = super().logits
        return self._at_owners(x, prefix, rows, prefix, lambda x, prefix, rows, _: part(x, prefix, rows))

    def log_softmax(self, x: Tensor, prefix: Tensor, rows: Tensor) -> Tensor:
        def score(x: Tensor, prefix: Tensor, rows: Tensor, _: Tensor) -> Tensor:
            values = Level.logits(self, x, prefix, rows)
            return F.log_softmax(self._mask(values, prefix), dim=-1)

        return self._at_owners(x, prefix, rows, prefix, score)

    def all_log_softmax(self, x: Tensor) -> Tensor:
        return self._joined(self._everywhere(x, lambda x, _: self._padded(Level.all_log_softmax(self, x))))

    # ---- a soft-max over the tokens of all groups

    def all_logits(self, x: Tensor) -> Tensor:
        """Raw logits, -inf at holes. Shape: (N, dim) -> (N, P, L)."""
        return self._joined(self._everywhere(x, lambda x, _: self._padded(self._own_logits(x))))

    def log_sums(self, x: Tensor, chunk: int = 0, but: Tensor | None = None) -> Tensor:
        """Log-sum-exp over all tokens. Shape: (N, dim) -> (N,).

        Args:
            but: (N,) long: a slot for each row that is left out.
            chunk: where a gradient is wanted, at most so many rows of logits are held at once, and made again
                in the backward pass (0: all).
        """

        def score(x: Tensor, slots: Tensor) -> Tensor:
            if but is None:
                own = torch.full((len(x),), -1, device=x.device)
            else:
                own = slots.squeeze(-1) - self.first * self.length
            if 0 < chunk < len(x) and torch.is_grad_enabled():
                return loss_in_pieces(self._log_sum, chunk, x, self._rows, own).unsqueeze(-1)
            return self._log_sum(x, self._rows, own).unsqueeze(-1)

        extra = None if but is None else but.view(1, -1, 1).expand(self.shard.size, -1, -1)
        return self._everywhere(x, score, extra).squeeze(-1).logsumexp(dim=0)

    def mean_row(self, tokens: int) -> Tensor:
        """Mean over the V tokens' rows, in fp32 or wider. Shape: -> (dim,)."""
        share = self.counts.flatten()
        with torch.autocast(self.weight.device.type, enabled=False):
            rows = wide(self._rows.flatten(0, 1))
            return total_over_ranks(share.to(rows.dtype) @ rows, self.shard) / tokens

    @torch.no_grad()
    def best(self, x: Tensor, k: int, prefix_scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The k best slots of every row: of ``prefix_scores`` plus log p(digit | prefix), or of the logits.

        Each rank finds the best of its own groups; k numbers a row and rank come back.

        Shape: (N, dim), (N, P) -> (N, k) scores, descending, and (N, k) slots.
        """
        extra = None
        if prefix_scores is not None:
            parts = zip(self.starts[:-1], self.starts[1:], strict=True)
            extra = torch.stack([F.pad(prefix_scores[:, a:b], (0, self.most - b + a)) for a, b in parts])
        few = min(k, self.most * self.length)

        def score(x: Tensor, extra: Tensor) -> Tensor:
            if prefix_scores is None:
                scores = self._own_logits(x)
            else:
                scores = Level.all_log_softmax(self, x) + extra[:, : self.own].unsqueeze(-1)
            values, slots = self._padded(scores).flatten(1).topk(few, dim=-1)
            # Numbers of slots are exact in float64 only.
            return torch.stack([values.double(), (slots + self.first * self.length).double()], dim=-1)

        found = self._everywhere(x, score, extra).transpose(0, 1).flatten(1, 2)
        values, place = found[..., 0].topk(k, dim=-1)
        return values.to(wide(x[:0]).dtype), found[..., 1].gather(1, place).long()

    # ---- rows of the whole table

    def cut(self, whole: Tensor) -> Tensor:
        """This rank's part. Shape: (P, ...) -> (own, ...)."""
        return whole[self.first : self.first + self.own]

    # ---- there and back

    def _at_owners(
        self,
        x: Tensor,
        prefix: Tensor,
        rows: Tensor | None,
        digit: Tensor,
        score: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Have pairs scored where their prefixes are.

        ``score`` gets features (M, dim), prefixes counted from its rank's first, rows and digits, (R',) each,
        and gives (R', C). Shape: (N, dim), (R,), (R,), (R,) -> (R, C).
        """
        x = _cast(x)
        size, n = self.shard.size, max(len(x), 1)
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        owner = torch.bucketize(prefix, self.bounds[1:], right=True)
        order = owner.argsort(stable=True)
        owner, prefix, rows, digit = (each.index_select(0, order) for each in (owner, prefix, rows, digit))
        # A row goes to a rank once, however many of its groups are there.
        once, which = (owner * n + rows).unique(return_inverse=True)
        counts = torch.stack([(once // n).bincount(minlength=size), owner.bincount(minlength=size)], dim=1)
        to_rows, to_pairs = exchanges(counts, self._says(x), self.shard)
        held = to_rows.send(x.index_select(0, once % n))
        begin = counts[:, 0].cumsum(0) - counts[:, 0]
        asked = to_pairs.send(torch.stack([which - begin[owner], prefix - self.bounds[owner], digit], dim=1))
        row = asked[:, 0] + _begins(to_rows, to_pairs, x.device)
        found = to_pairs.answer(score(held, asked[:, 1], row, asked[:, 2]))
        return found.index_select(0, order.argsort())

    def _everywhere(
        self, x: Tensor, score: Callable[[Tensor, Tensor], Tensor], extra: Tensor | None = None
    ) -> Tensor:
        """Have every row scored by every rank: (N, dim), and (W, N, E) for each rank -> (W, N, ...)."""
        x = _cast(x)
        size, n = self.shard.size, len(x)
        (to_all,) = exchanges(
            torch.full((size, 1), n, dtype=torch.long, device=x.device), self._says(x), self.shard
        )
        held = to_all.send(x.repeat(size, 1))
        more = held[:, :0] if extra is None else to_all.send(extra.flatten(0, 1))
        if torch.is_grad_enabled():
            found = score(held, more)
        else:
            step = max(1, _HELD // max(1, self.own * self.length))
            found = torch.cat([score(a, b) for a, b in zip(held.split(step), more.split(step), strict=True)])
        return to_all.answer(found).unflatten(0, (size, n))

    def _says(self, x: Tensor) -> Tensor:
        return torch.tensor([self.book, x.size(-1)], device=x.device)

    def _own_logits(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Of this rank's prefixes, -inf at holes. Shape: (N, dim) -> (N, own, L)."""
        weight = self._rows if weight is None else weight
        logits = wide(F.linear(x, weight.flatten(0, 1))).unflatten(-1, (self.own, self.length))
        return logits.masked_fill(self.counts == 0, -torch.inf)

    @property
    def _rows(self) -> Tensor:
        """Whose products with features are the logits. Shape: -> (own, L, dim)."""
        weight = self.weight
        return weight if self.margin is None else unit(wide(weight)).to(weight.dtype)

    def _of_pairs(self, x: Tensor, pairs: Pairs) -> Tensor:
        logits = super()._of_pairs(x, pairs)
        return logits if self.margin is None else logits * inverse_lengths(self.weight)[pairs.groups]

    def _picked(self, logits: Tensor, digit: Tensor) -> tuple[Tensor, Tensor]:
        if self.margin is None:
            return super()._picked(logits, digit)
        is_picked, place = digit >= 0, digit.clamp(min=0).unsqueeze(-1)
        picked = logits.gather(-1, place).squeeze(-1)
        # Where a digit has no token its logit is -inf, and the slope there no number.
        bent = self.margin.target(picked.where(is_picked, picked.new_zeros(())))
        return picked, logits.scatter(-1, place, bent.where(is_picked, picked).unsqueeze(-1))

    def _log_sum(self, x: Tensor, weight: Tensor, but: Tensor) -> Tensor:
        """Over this rank's tokens but one of each row, by its slot here, if it is here. Shape: (N, dim),
        (own, L, dim), (N,) -> (N,)."""
        logits = self._own_logits(x, weight).flatten(1)
        if self.margin is not None:
            slots = torch.arange(logits.size(1), device=but.device)
            logits = logits.masked_fill(slots == but.unsqueeze(-1), -torch.inf)
        return logits.logsumexp(dim=-1)

    def _padded(self, scores: Tensor) -> Tensor:
        """As many prefixes on every rank. Shape: (N, own, L) -> (N, most, L)."""
        return F.pad(scores, (0, 0, 0, self.most - self.own), value=-torch.inf)

    def _joined(self, scores: Tensor) -> Tensor:
        """Shape: (W, N, most, L) -> (N, P, L)."""
        parts = zip(scores.unbind(0), self.starts[:-1], self.starts[1:], strict=True)
        return torch.cat([part[:, : end - begin] for part, begin, end in parts], dim=1)

    def extra_repr(self) -> str:
        place = f"rank {self.shard.rank} of {self.shard.size}"
        return f"{self.own} of {self.prefixes}x{self.length}x{self.weight.size(-1)}, {place}"


def _cast(x: Tensor) -> Tensor:
    """Autocast's type, which the products are in: half as much to send."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def _begins(rows: Exchange, pairs: Exchange, device: torch.device) -> Tensor:
    """Of every pair received, where the rows of the rank it is from begin among those received."""
    counts = torch.tensor([rows.received, pairs.received], device=device)
    return (counts[0].cumsum(0) - counts[0]).repeat_interleave(counts[1])
