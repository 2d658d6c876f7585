"""A cascade's group head for a trained softmax: fitted to the probabilities that the softmax gives groups.

The mass of a group is a sum of exponentials over its tokens, and a group head has a few rows for it: m
prototypes, whose exponentials are added. Everything here reads features and tables only, no labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.coding import Codebook

#: Logits held at once, 64 MiB of them.
_WIDE = 2**24

#: Tokens of a minibatch, passes over the features, and the largest step of Adam.
BATCH, PASSES, LEARNING_RATE = 512, 8, 5e-3

#: Steps of k-means: with few members a group it rests after a few.
_MEANS = 10

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Softmax:
    """A softmax whose tokens are in the order of slots.

    Attributes:
        codebook: two lengths, L_1 groups of L_2 slots.
        rows: (L_1 L_2, d) fp32, of holes anything.
        holes: (L_1 L_2,) fp32, what is added to logits: 0, -inf at holes.
    """

    codebook: Codebook
    rows: Tensor
    holes: Tensor

    @classmethod
    def of(cls, table: Tensor, codebook: Codebook) -> Softmax:
        """Of a table (V, d)."""
        slots = codebook.slots.to(table.device)
        rows = table.new_zeros(codebook.size, table.size(1), dtype=torch.float32)
        rows[slots] = table.float()
        placed = table.new_full((codebook.size,), -torch.inf, dtype=torch.float32)
        placed[slots] = 0.0
        return cls(codebook, rows, placed)

    def logits(self, features: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """(N, d) -> (n, L_1, L_2) and which rows, a few at a time."""
        step = max(1, _WIDE // len(self.rows))
        for start in range(0, len(features), step):
            which = slice(start, start + step)
            wide = F.linear(features[which].float(), self.rows, self.holes)
            yield (
                wide.view(-1, self.codebook.lengths[0], self.codebook.size // self.codebook.lengths[0]),
                which,
            )

    def log_groups(self, features: Tensor) -> Tensor:
        """log p(group), -inf of groups without tokens. (N, d) -> (N, L_1) fp32."""
        masses = [wide.logsumexp(dim=-1).log_softmax(dim=-1) for wide, _ in self.logits(features)]
        return torch.cat(masses) if masses else features.new_zeros(0, self.codebook.lengths[0])

    def frequencies(self, features: Tensor) -> Tensor:
        """How probable slots are on average. (N, d) -> (L_1, L_2) fp32."""
        total = torch.zeros_like(self.holes)
        for wide, _ in self.logits(features):
            total += wide.flatten(1).softmax(dim=-1).sum(dim=0)
        return (total / max(1, len(features))).view(self.codebook.lengths[0], -1)


@dataclass(frozen=True)
class Fitted:
    """A group head.

    Attributes:
        rows: (L_1 m, d) fp32, those of a group next to each other.
        bias: (L_1 m,) fp32.
        divergence: Kullback-Leibler, nats a token, over the features that were not fitted to.
    """

    rows: Tensor
    bias: Tensor
    divergence: float


def first_tokens(batches: Iterable[Tensor], tokens: int, progress: Progress) -> Iterator[Tensor]:
    """Features (n, d) of a text until there are so many; ``progress`` is told of "features"."""
    count = 0
    for batch in batches:
        part = batch[: tokens - count]
        yield part
        count += len(part)
        progress("features", count, tokens)
        if count >= tokens:
            return


@torch.no_grad()
def gather(
    batches: Iterable[Tensor], softmax: Softmax, tokens: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Features of a text, and what the softmax gives groups there, until there are enough.

    Memory: ``tokens`` x (d + L_1) numbers of 4 bytes.

    Args:
        batches: of features, (n, d) each.
        softmax: the model's.
        tokens: N, at most.
        progress: told of "features".

    Returns:
        (N, d) and (N, L_1), fp32.
    """
    kept: list[Tensor] = []
    masses: list[Tensor] = []
    for part in first_tokens(batches, tokens, progress):
        kept.append(part.float())
        masses.append(softmax.log_groups(kept[-1]))
    return torch.cat(kept), torch.cat(masses)


def group_log_probs(
    features: Tensor, rows: Tensor, bias: Tensor, prototypes: int, is_empty: Tensor
) -> Tensor:
    """log p(group) of a group head. (N, d), (L_1 m, d), (L_1 m,), m, (L_1,) bool -> (N, L_1)."""
    logits = F.linear(features, rows, bias).view(len(features), -1, prototypes).logsumexp(dim=-1)
    return logits.masked_fill(is_empty, -torch.inf).log_softmax(dim=-1)


def divergence(log_mass: Tensor, found: Tensor) -> Tensor:
    """Mean of sum_g p_g (log p_g - log q_g). (N, L_1), (N, L_1) -> scalar."""
    terms = log_mass.exp() * (log_mass - found)
    # Groups without tokens: 0 x (-inf + inf).
    return terms.masked_fill(log_mass == -torch.inf, 0.0).sum(dim=-1).mean()


def fit(
    softmax: Softmax,
    features: Tensor,
    log_mass: Tensor,
    prototypes: int,
    seed: int,
    progress: Progress,
    passes: int = PASSES,
    batch: int = BATCH,
    rate: float = LEARNING_RATE,
) -> Fitted:
    """Minimise the divergence of the groups' probabilities by Adam over minibatches of features.

    A sixteenth of the features is held back, to tell how good the fit is.

    Args:
        softmax: what is fitted to.
        features, log_mass: from ``gather``, at least 2 rows.
        prototypes: m, at least 1.
        seed: of the order of minibatches.
        progress: told of "group head".
        passes, batch, rate: over the features, rows of a minibatch, Adam's largest step.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator)
    held = order[: max(1, len(order) // 16)].to(features.device)
    used = order[len(held) :]
    rows, bias = first_prototypes(softmax, features[held], log_mass[held], prototypes)
    is_empty = softmax.holes.view(softmax.codebook.lengths[0], -1).eq(-torch.inf).all(dim=-1)
    rows.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.Adam([rows, bias], lr=rate, betas=(0.9, 0.98))
    steps, done = passes * math.ceil(len(used) / batch), 0
    for _ in range(passes):
        for picked in used[torch.randperm(len(used), generator=generator)].split(batch):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / steps))
            which = picked.to(features.device)
            found = group_log_probs(features[which], rows, bias, prototypes, is_empty)
            loss = divergence(log_mass[which], found)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            progress("group head", done, steps)
    with torch.no_grad():
        found = group_log_probs(features[held], rows, bias, prototypes, is_empty)
        left = float(divergence(log_mass[held], found))
    return Fitted(rows.detach(), bias.detach(), left)


@torch.no_grad()
def first_prototypes(
    softmax: Softmax, features: Tensor, log_mass: Tensor, prototypes: int
) -> tuple[Tensor, Tensor]:
    """Where the fit begins: weighted k-means of each group's rows, from its most probable tokens on.

    A prototype's row is the mean of its tokens' rows, by how probable they are; its bias makes up the mass of
    its tokens at the mean feature, and then that of its group over the features.

    Shape: (N, d), (N, L_1) -> (L_1 m, d), (L_1 m,).
    """
    groups, m = softmax.codebook.lengths[0], prototypes
    members = softmax.rows.view(groups, -1, softmax.rows.size(1))
    exists = softmax.holes.view(groups, -1) > -torch.inf
    weights = softmax.frequencies(features).masked_fill(~exists, 0.0)
    # Of tokens that are never expected, all alike.
    weights = (weights + 1e-12) * exists
    nearest = _clusters(members, weights, exists, m)
    mean = features.float().mean(dim=0)
    at_mean = (members @ mean + softmax.holes.view(groups, -1)).masked_fill(~exists, -torch.inf)
    rows, bias = [], []
    for j in range(m):
        own = nearest.eq(j) & exists
        share = weights * own
        row = (share.unsqueeze(1) @ members).squeeze(1) / share.sum(dim=1, keepdim=True).clamp(min=1e-30)
        mass = at_mean.masked_fill(~own, -torch.inf).logsumexp(dim=1)
        # A prototype without tokens stands aside until the fit needs it.
        level = torch.where(own.any(dim=1), mass - row @ mean, torch.full_like(mass, -20.0))
        rows.append(torch.where(own.any(dim=1, keepdim=True), row, members.mean(dim=1)))
        bias.append(level)
    stacked, levels = torch.stack(rows, dim=1).flatten(0, 1), torch.stack(bias, dim=1)
    found = group_log_probs(features.float(), stacked, levels.flatten(), m, ~exists.any(dim=1))
    gap = (log_mass.exp().mean(dim=0).log() - found.exp().mean(dim=0).log()).nan_to_num(0.0, 0.0, 0.0)
    return stacked, (levels + gap.unsqueeze(1)).flatten()


def _clusters(members: Tensor, weights: Tensor, exists: Tensor, count: int) -> Tensor:
    """Which of ``count`` means of its group a row is nearest to.

    Shape: (L_1, L_2, d), (L_1, L_2), (L_1, L_2) bool -> (L_1, L_2) long.
    """
    top = weights.topk(min(count, weights.size(1)), dim=1).indices
    centres = members.gather(1, top.unsqueeze(-1).expand(-1, -1, members.size(-1)))
    # A group of fewer tokens than prototypes has holes among its best: nothing is nearest to them.
    usable = exists.gather(1, top)
    nearest = weights.new_zeros(weights.shape, dtype=torch.long)
    numbers = torch.arange(centres.size(1), device=centres.device)
    for _ in range(_MEANS):
        distance = torch.cdist(members, centres).masked_fill(~usable.unsqueeze(1), torch.inf)
        nearest = distance.argmin(dim=-1)
        share = nearest.unsqueeze(-1).eq(numbers).to(weights) * weights.unsqueeze(-1)
        total = share.sum(dim=1)
        moved = (share.transpose(1, 2) @ members) / total.clamp(min=1e-30).unsqueeze(-1)
        centres = torch.where(total.unsqueeze(-1) > 0, moved, centres)
    return nearest
