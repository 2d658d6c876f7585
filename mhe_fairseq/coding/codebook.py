"""A token is a few digits: the mixed-radix code of its slot (paper eq. 4)."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mhe_fairseq.coding.files import replace_file
from mhe_fairseq.coding.plan import parse_lengths
from mhe_fairseq.errors import MHEError

_FORMAT = "mhe-codebook"
_VERSION = 1


def symbols_fingerprint(symbols: Iterable[str]) -> str:
    """16 hex characters that pin a dictionary: its symbols in order."""
    digest = hashlib.sha256()
    for symbol in symbols:
        digest.update(symbol.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


class Codebook:
    """Which slot each token has in the grid ``L_1 x ... x L_H``.

    A slot is a number in ``0 .. prod(lengths) - 1``; its digits are its mixed-radix digits, most
    significant first. Slots that no token has are holes; they may lie anywhere.

    Args:
        lengths: ``(L_1, ..., L_H)``, H >= 1, each at least 1.
        slots: (V,) integers, token -> slot, all different. Default: token v in slot v (dictionary
            order, which fairseq makes the order of frequency).
        vocab_size: V, needed when ``slots`` is not given (default ``prod(lengths)``).
        dictionary: fingerprint of the symbols the slots were made for (``symbols_fingerprint``), or "".

    Attributes:
        lengths: tuple of int.
        slots: (V,) long, on the CPU.
        token_of_slot: (prod(lengths),) long, -1 at holes, on the CPU.

    Raises:
        MHEError: too few slots for the tokens, slots out of range or shared by two tokens.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        slots: Tensor | None = None,
        vocab_size: int | None = None,
        dictionary: str = "",
    ) -> None:
        self.lengths = parse_lengths(lengths)
        self.dictionary = dictionary
        size = math.prod(self.lengths)
        if slots is None:
            vocab_size = size if vocab_size is None else vocab_size
            parse_lengths(lengths, vocab_size)
            slots = torch.arange(vocab_size)
        slots = torch.as_tensor(slots).detach().to("cpu", torch.long).clone()
        if slots.dim() != 1 or slots.numel() == 0:
            raise MHEError(f"slots must be a list of at least one number, got shape {tuple(slots.shape)}")
        if vocab_size is not None and slots.numel() != vocab_size:
            raise MHEError(f"slots for {slots.numel()} tokens were given for a vocabulary of {vocab_size}")
        parse_lengths(lengths, slots.numel())
        low, high = int(slots.min()), int(slots.max())
        if low < 0 or high >= size:
            token = int((slots < 0).logical_or(slots >= size).nonzero()[0])
            raise MHEError(
                f"token {token} has slot {int(slots[token])}, "
                f"but lengths {','.join(map(str, self.lengths))} have slots 0..{size - 1} only"
            )
        token_of_slot = torch.full((size,), -1, dtype=torch.long)
        token_of_slot[slots] = torch.arange(slots.numel())
        taken = token_of_slot[slots] != torch.arange(slots.numel())
        if bool(taken.any()):
            token = int(taken.nonzero()[0])
            raise MHEError(
                f"slot {int(slots[token])} is given to two tokens, {token} and "
                f"{int(token_of_slot[slots[token]])}; every token needs a slot of its own"
            )
        self.slots = slots
        self.token_of_slot = token_of_slot

    def __len__(self) -> int:
        """V, the number of tokens."""
        return self.slots.numel()

    def __eq__(self, other: object) -> bool:
        """Same lengths and same slots (the dictionary is not compared)."""
        if not isinstance(other, Codebook):
            return NotImplemented
        return self.lengths == other.lengths and torch.equal(self.slots, other.slots)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.lengths))
        return f"Codebook({shape}, {len(self)} tokens, {self.holes} holes, {self.fingerprint})"

    @property
    def heads(self) -> int:
        """H, the number of digits."""
        return len(self.lengths)

    @property
    def size(self) -> int:
        """Number of slots, ``prod(lengths)``."""
        return self.token_of_slot.numel()

    @property
    def holes(self) -> int:
        """Number of slots without a token."""
        return self.size - len(self)

    @property
    def fingerprint(self) -> str:
        """16 hex characters that pin lengths and slots."""
        digest = hashlib.sha256(",".join(map(str, self.lengths)).encode())
        digest.update(self.slots.numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def digits(self, tokens: Tensor) -> Tensor:
        """Digits of tokens, most significant first.

        Shape: tokens (...) long -> (..., H) long, on the device of ``tokens``.
        """
        return unravel(self.slots.to(tokens.device)[tokens], self.lengths)

    def tokens(self, digits: Tensor) -> Tensor:
        """Tokens of digits; -1 where the slot is a hole.

        Shape: digits (..., H) long -> (...) long, on the device of ``digits``.
        """
        return self.token_of_slot.to(digits.device)[ravel(digits, self.lengths)]

    def check_dictionary(self, fingerprint: str, size: int, name: str = "the codebook") -> None:
        """Refuse to serve a dictionary it was not made for.

        Raises:
            MHEError: another number of tokens, or another dictionary than the one recorded.
        """
        if len(self) != size:
            raise MHEError(
                f"{name} is for {len(self)} tokens and the dictionary has {size}; "
                "make it again from this dictionary"
            )
        if self.dictionary and fingerprint and self.dictionary != fingerprint:
            raise MHEError(
                f"{name} was made for another dictionary (fingerprint {self.dictionary}, this one has "
                f"{fingerprint}, both of {size} tokens); make it again from this dictionary"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a small file (atomically: a reader sees the old file or the whole new one)."""
        width = torch.int32 if self.size < 2**31 else torch.int64
        state = {
            "format": _FORMAT,
            "version": _VERSION,
            "lengths": list(self.lengths),
            "slots": self.slots.to(width),
            "dictionary": self.dictionary,
            "fingerprint": self.fingerprint,
        }
        replace_file(Path(path), lambda to: torch.save(state, to))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Codebook:
        """Read a file written by ``save``. Only numbers and strings are unpickled.

        Raises:
            MHEError: missing, truncated, not a codebook, of a newer version, or invalid slots.
        """
        target = Path(path)
        if not target.is_file():
            raise MHEError(f"there is no codebook file {target}; `mhe assign` writes one")
        try:
            state = torch.load(target, map_location="cpu", weights_only=True)
        except Exception as error:  # junk bytes make the unpickler raise almost anything, struct.error too
            raise MHEError(
                f"codebook file {target} is damaged or not a codebook "
                f"({target.stat().st_size} bytes, {type(error).__name__}); write it again"
            ) from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise MHEError(f"{target} is not a codebook file; one written by Codebook.save was expected")
        if state.get("version") != _VERSION:
            raise MHEError(
                f"codebook file {target} has version {state.get('version')}, this program reads {_VERSION}"
            )
        try:
            book = cls(state["lengths"], state["slots"], dictionary=state["dictionary"])
        except MHEError as error:
            raise MHEError(f"codebook file {target}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise MHEError(f"codebook file {target} lacks a part of a codebook ({error})") from error
        if state.get("fingerprint") != book.fingerprint:
            raise MHEError(
                f"codebook file {target} was changed after it was written: its content has fingerprint "
                f"{book.fingerprint}, it says {state.get('fingerprint')}"
            )
        return book


def unravel(slots: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mixed-radix digits, most significant first. Shape: (...) -> (..., H)."""
    digits = []
    for length in reversed(lengths):
        digits.append(slots % length)
        slots = slots.div(length, rounding_mode="floor")
    return torch.stack(digits[::-1], dim=-1)


def ravel(digits: Tensor, lengths: Sequence[int]) -> Tensor:
    """Slots of digits, the inverse of ``unravel``. Shape: (..., H) -> (...)."""
    slots = torch.zeros_like(digits[..., 0])
    for h, length in enumerate(lengths):
        slots = slots * length + digits[..., h]
    return slots
