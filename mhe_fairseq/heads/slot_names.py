"""What kernels of beam search call the slots of a codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from mhe_fairseq.coding.codebook import Codebook


class SlotNames:
    """Tokens of slots, on one device; some of them may be marked as not looked for.

    Attributes:
        names: (slots,) int32: a slot's token, -1 where there is none.
        slots: (V,) long: the slot of every token.
    """

    def __init__(self, codebook: Codebook, device: torch.device) -> None:
        self.names = codebook.token_of_slot.to(device, torch.int32)
        self.slots = codebook.slots.to(device)
        self._kept: tuple[Tensor, Tensor] | None = None

    def without(self, tokens: Tensor) -> Tensor:
        """The names, with -2 - token for tokens that are not looked for. Shape: (W,) long -> (slots,).

        Kept for the next step of a search, which hands over the same tensor.
        """
        if not len(tokens):
            return self.names
        kept = self._kept
        if kept is None or kept[0] is not tokens:
            names = self.names.index_put((self.slots[tokens],), -2 - tokens.to(torch.int32))
            self._kept = kept = (tokens, names)
        return kept[1]
