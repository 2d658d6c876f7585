"""Some of the tokens are searched, the others never found: what a head needs to know of them."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.heads.base import Candidates
from mhe_fairseq.heads.reading import Reading


class Allowed:
    """Tokens that a search may choose, of all V. Their probabilities stay what they are; those of the others
    count as zero, and nothing is normalised anew.

    Args:
        mask: (V,) bool.
        name: what they are, in a few words, for a log.
    """

    def __init__(self, mask: Tensor, name: str = "") -> None:
        self.mask = mask
        self.name = name
        self.count = int(mask.sum())
        #: Tokens besides the four special symbols, which come first.
        self.others = int(mask[4:].sum())
        self._places: dict[torch.device, Tensor] = {mask.device: mask}
        self._levels: WeakKeyDictionary[nn.Module, tuple[Codebook, list[Tensor]]] = WeakKeyDictionary()

    def on(self, device: torch.device) -> Tensor:
        """``mask`` there."""
        if device not in self._places:
            self._places[device] = self.mask.to(device)
        return self._places[device]

    def levels(self, head: nn.Module, codebook: Codebook, device: torch.device) -> list[Tensor]:
        """Which prefixes of digits have an allowed token below them: of one digit (L_1,), of two
        (L_1 * L_2,), ..., of all. Kept for ``head``. Shape: H of bool, on ``device``."""
        kept = self._levels.get(head)
        if kept is None or kept[0] is not codebook or kept[1][0].device != device:
            below = torch.zeros(codebook.size, dtype=torch.bool)
            below[codebook.slots[self.mask.cpu()]] = True
            found = [below]
            for length in reversed(codebook.lengths[1:]):
                found.insert(0, found[0].view(-1, length).any(dim=1))
            kept = codebook, [each.to(device) for each in found]
            self._levels[head] = kept
        return kept[1]


class RestrictedReading(Reading):
    """Of any head: more of its best tokens are asked for until enough of them are allowed.

    Args:
        inner: the head's own.
        allowed: what may be found.
    """

    def __init__(self, inner: Reading, allowed: Allowed) -> None:
        super().__init__(inner.head, inner.features)
        self.inner = inner
        self.mask = allowed.on(inner.features.device)

    def log_prob_of(self, tokens: Tensor) -> Tensor:
        return self.inner.log_prob_of(tokens)

    def candidates(self, k: int, tokens: Tensor) -> Candidates:
        """The k best allowed ones; -inf, of no token in particular, where there are fewer."""
        vocab = self.head.vocab_size
        wanted = min(vocab, 2 * k)
        while True:
            found = self.inner.candidates(wanted, tokens)
            scores = found.scores.masked_fill(~self.mask[found.tokens], -torch.inf)
            best, place = scores.topk(min(k, wanted), dim=1)
            # Whatever was not found is no better than the last. NaN ends it, too.
            if wanted == vocab or not bool((best[:, -1] < found.scores[:, -1]).any()):
                return Candidates(best, found.tokens.gather(1, place), found.given)
            wanted = min(vocab, 4 * wanted)
