"""A trained head for another dictionary: its state dict with the rows where the new codebook wants them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mhe_fairseq.coding.codebook import Codebook, ravel, unravel
from mhe_fairseq.coding.symbols import Origins
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import wide
from mhe_fairseq.heads.rows.inherited import inherited, moved_values
from mhe_fairseq.heads.rows.input_rows import MARK, rows_of_state
from mhe_fairseq.heads.softmax import SCALE

_BOOK = ("codebook_slots", "codebook_lengths")


@dataclass(frozen=True)
class Regrown:
    """A head for a new dictionary.

    Attributes:
        state: of the head, names without a prefix.
        embedding: (V', d) of the tokens it predicts, None where it was given none.
    """

    state: dict[str, Tensor]
    embedding: Tensor | None


def regrow_head(
    state: dict[str, Tensor],
    book: Codebook,
    origins: Origins,
    embedding: Tensor | None = None,
    tied_groups: bool = False,
    seed: int = 1,
) -> Regrown:
    """Move a head's rows to a new codebook.

    Before any training, tokens that stay have the probabilities they had, but for the shares of tokens that
    are new or gone: any two of them are as likely, one against the other, as before; in a cascade any two of
    the same group, and any two groups. A permutation of the dictionary changes nothing. In a mixture that is
    so while no digit gets a value that only new tokens have: such values take from each component what they
    take.

    Args:
        state: of a product, cascade, sampling or softmax head, names without a prefix; not changed.
        book: of the new dictionary, from ``coding.regrow`` of the head's own codebook.
        origins: of the new dictionary.
        embedding: (V, d) of the model's tokens on this side.
        tied_groups: rows of first digits of one token have the embedding in them (``tied_groups``, or a
            product's ``tied``).
        seed: of the noise in rows of new symbols that are made of no known pieces.

    Raises:
        MHEError: a tensor that none of these heads has.
    """
    types = {name: value.dtype for name, value in state.items()}
    # In half precision a sum and its difference again are other numbers.
    rows = {name: wide(value) if value.is_floating_point() else value for name, value in state.items()}
    head = _Head(rows, book, origins, None if embedding is None else wide(embedding), tied_groups, seed)
    made = {name: head.moved(name, value) for name, value in rows.items() if name not in _BOOK}
    made["codebook_slots"] = book.slots.clone()
    made["codebook_lengths"] = torch.tensor(book.lengths)
    made, grown = head.folded(made)
    made = {name: value.to(types[name]) for name, value in made.items()}
    return Regrown(made, None if grown is None or embedding is None else grown.to(embedding.dtype))


class _Head:
    """One head on its way; see ``regrow_head``."""

    def __init__(
        self,
        state: dict[str, Tensor],
        book: Codebook,
        origins: Origins,
        embedding: Tensor | None,
        tied_groups: bool,
        seed: int,
    ) -> None:
        self.state, self.origins, self.seed = state, origins, seed
        self.old = Codebook(tuple(state["codebook_lengths"].tolist()), state["codebook_slots"])
        self.new = book
        self.embedding = embedding
        self.tied_groups = tied_groups and embedding is not None
        self.digits = tuple(unravel(each.slots, each.lengths) for each in (self.old, book))

    def moved(self, name: str, value: Tensor) -> Tensor:
        """A tensor of the head for the new codebook, rows of single first digits with their embeddings."""
        if name in ("weight", "bias"):
            return self._product(name, value)
        if name in ("group.weight", "group.bias"):
            value = self._used(value) if name == "group.weight" else value
            # All rows of a group stand together.
            rows = value.unflatten(0, (self.old.lengths[0], -1))
            return self._values(rows, 1).flatten(0, 1)
        if name == "subgroup.table":
            return self._values(value.flatten(0, 1), 2).unflatten(0, self.new.lengths[:2])
        if name == "local.table":
            shape = (self.new.size // self.new.lengths[-1], self.new.lengths[-1])
            return self._values(value.flatten(0, 1), self.old.heads).unflatten(0, shape)
        if name == "table.linear.weight":
            return inherited(value, self.origins, self.seed)
        if name in ("predictor.weight", "predictor.bias"):
            return value  # of first digits, of which there are as many as before
        if name in ("gate.weight", "gate.bias", "project.weight", MARK, SCALE):
            return value
        raise MHEError(
            f"the head has a tensor {name} of shape {tuple(value.shape)}, and it is not known how that "
            "changes with the dictionary"
        )

    def folded(self, made: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """The embedding, changed where the rows that the head adds to it are others now, and the rows of
        single first digits without it."""
        if self.embedding is None:
            return made, None
        embedding = inherited(self.embedding, self.origins, self.seed)
        if MARK in self.state:
            kept, old = self.origins.kept, self.origins.old
            before = rows_of_state(self.state, "")
            after = rows_of_state(made, "")
            assert before is not None and after is not None
            change = before[old[kept]] - after[kept]
            embedding[kept] = embedding[kept] + change.to(embedding)
        if self.tied_groups:
            name = "group.weight" if "group.weight" in made else "weight"
            places, tokens = self._singles(self.new)
            made[name] = made[name].index_add(0, places, embedding[tokens], alpha=-1)
            # A new token by itself begins with its embedding alone.
            made[name][places[self.origins.old[tokens] < 0]] = 0.0
        return made, embedding

    @property
    def _copies(self) -> int:
        """Rows of each first digit: components of a product, prototypes of a cascade."""
        rows = self.state.get("weight")
        if rows is not None:
            return len(rows) // sum(self.old.lengths)
        return len(self.state["group.weight"]) // self.old.lengths[0]

    def _used(self, rows: Tensor) -> Tensor:
        """Rows of the first digit as they are used."""
        if not self.tied_groups:
            return rows
        assert self.embedding is not None
        places, tokens = self._singles(self.old)
        return rows.index_add(0, places, self.embedding[tokens])

    def _singles(self, book: Codebook) -> tuple[Tensor, Tensor]:
        """All rows of first digits that have one token, and these tokens. Shape: (S,), (S,) long."""
        length, copies = book.lengths[0], self._copies
        first = unravel(book.slots, book.lengths)[:, 0]
        tokens = (torch.bincount(first, minlength=length)[first] == 1).nonzero().squeeze(-1)
        copy = torch.arange(copies).unsqueeze(1)
        rows = first[tokens] + length * copy if "weight" in self.state else first[tokens] * copies + copy
        return rows.flatten(), tokens.repeat(copies)

    def _product(self, name: str, value: Tensor) -> Tensor:
        """Rows of the first digit of all components, of the second, ..."""
        value = self._used(value) if name == "weight" else value
        copies, parts = self._copies, []
        for h, block in enumerate(value.split([copies * length for length in self.old.lengths])):
            # Components behind one another become one wide row of each value.
            rows = block.unflatten(0, (copies, self.old.lengths[h])).transpose(0, 1)
            old, new = (digits[:, h] for digits in self.digits)
            place, size = torch.arange(len(rows)), self.new.lengths[h]
            grown = moved_values(rows, place, (old, new), size, self.origins, self.seed + h)
            parts.append(grown.transpose(0, 1).flatten(0, 1))
        return torch.cat(parts)

    def _values(self, rows: Tensor, count: int) -> Tensor:
        """Rows of values of the first ``count`` digits, as one number."""
        old, new = (
            ravel(digits[:, :count], book.lengths[:count])
            for digits, book in zip(self.digits, (self.old, self.new), strict=True)
        )
        lengths = self.new.lengths[:count]
        place = ravel(unravel(torch.arange(len(rows)), self.old.lengths[:count]), lengths)
        size = int(torch.tensor(lengths).prod())
        return moved_values(rows, place, (old, new), size, self.origins, self.seed + count)
