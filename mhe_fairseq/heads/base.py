"""What every output head promises, whatever is inside."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.given import check_features, checked_target
from mhe_fairseq.heads.labels import Labels, label_pairs
from mhe_fairseq.heads.reading import Reading
from mhe_fairseq.heads.rows.input_rows import MARK


class HeadLoss(NamedTuple):
    """What a head returns for a batch.

    Attributes:
        nll: (N,) fp32 (float64 for float64 features): -log p(target), the true token value.
        smooth: (N,) same dtype, or None: mean over the V tokens of -log p(token), or an unbiased
            estimate of it.
        stats: name -> (N,) detached tensor, to be averaged over tokens: parts of the loss and
            whether parts were right ("digit_1_nll", "digit_1_accuracy", ...).
    """

    nll: Tensor
    smooth: Tensor | None
    stats: dict[str, Tensor]


class Candidates(NamedTuple):
    """What a beam search needs of a head, for N rows.

    Attributes:
        scores: (N, k) log-probs of the k best tokens, descending.
        tokens: (N, k) these tokens.
        given: (N, C) log-probs of tokens that were asked for.
    """

    scores: Tensor
    tokens: Tensor
    given: Tensor


#: How to say that a dictionary is more than its file.
TASKS_FLAGS = (
    ", and the flags of its task that add to it or cut it (--langs, --lang-tok-style, "
    "--output-dictionary-size)"
)

#: Of a head, what is called from outside with features first.
_CALLED = (
    "forward", "log_probs", "log_prob", "topk", "log_prob_of", "candidates", "beam_candidates", "label_loss",
    "label_topk",
)  # fmt: skip


#: Of these, what is called with a target after them.
_WITH_TARGET = ("forward", "log_prob")


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse what torch would tell of some operator inside, or would not: ``given.checked_target``."""
    has_target = method.__name__ in _WITH_TARGET

    @functools.wraps(method)
    def checked(self: OutputHead, features: Tensor, *args: Any, **kwargs: Any) -> Any:
        own = self.codebook_slots.device
        for each in (features, *args, *kwargs.values()):
            if isinstance(each, Tensor) and each.device != own:
                raise MHEError(
                    f"the head is on {own} and was given a tensor on {each.device}; move the head with "
                    f"head.to('{each.device}'), or the tensor"
                )
        check_features(features, self.dim)
        if has_target and args:
            args = (checked_target(args[0], features, self.vocab_size), *args[1:])
        elif has_target and "target" in kwargs:
            kwargs["target"] = checked_target(kwargs["target"], features, self.vocab_size)
        return method(self, features, *args, **kwargs)

    return checked


class OutputHead(nn.Module, ABC):
    """Features -> a distribution over V tokens.

    For all x (N, d), N >= 0, and all dtypes of x (soft-max arithmetic is fp32 or wider)::

        head.log_probs(x).exp().sum(-1) == 1
        -head(x, y).nll == head.log_prob(x, y) == head.log_probs(x).gather(-1, y)   (eval mode)
        head.topk(x, k) == head.log_probs(x).topk(k)

    The codebook lives in the state dict (``codebook_slots``, ``codebook_lengths``, long), so a checkpoint
    carries it. Loading a state dict of another codebook is refused, unless ``adopt_codebook`` is set.

    Args:
        dim: d, the width of the features.
        codebook: tokens <-> slots.
    """

    #: Set to take over the codebook of the next state dict loaded (a model being rebuilt from its
    #: checkpoint) in place of comparing it. Lengths and vocabulary size must agree all the same.
    adopt_codebook: bool = False

    #: ``topk`` does less than V-wide work.
    finds_best: bool = False

    #: ``beam_candidates`` does less work than ``topk`` of every row.
    searches_beams: bool = False

    #: ``input_rows`` gives rows.
    has_input_rows: bool = False

    codebook_slots: Tensor
    codebook_lengths: Tensor
    _token_of_slot: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_calls(cls)

    def __init__(self, dim: int, codebook: Codebook) -> None:
        super().__init__()
        if dim < 1:
            raise MHEError(f"a head needs features of at least 1 dimension, got {dim}")
        self.dim = dim
        self.codebook = codebook
        self.register_buffer("codebook_slots", codebook.slots.clone())
        self.register_buffer("codebook_lengths", torch.tensor(codebook.lengths))
        # No buffer: it follows from the codebook. It moves to the device where it is first asked for.
        self._token_of_slot = codebook.token_of_slot
        self._updates: int | None = None

    @property
    def vocab_size(self) -> int:
        """V, the number of real tokens."""
        return len(self.codebook)

    @abstractmethod
    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        """Loss of a batch.

        Args:
            features: (N, d).
            target: (N,) tokens, of any type of integers. On a GPU one outside 0..V-1 is not told: looking
                for it would be a wait.
            smoothing: also compute the smoothing term.
            accuracy: also report which digits (groups) were predicted right in ``stats``.

        Raises:
            MHEError: features that are not (N, d), a target that is not N tokens.
        """

    @abstractmethod
    def log_probs(self, features: Tensor) -> Tensor:
        """Exact log-probabilities, a new tensor that may be written to. Shape: (N, d) -> (N, V) fp32."""

    def log_prob(self, features: Tensor, target: Tensor) -> Tensor:
        """Exact log p(target), no V-wide tensor. Shape: (N, d), (N,) -> (N,) fp32."""
        was_training = self.training
        self.training = False
        try:
            return -self.forward(features, target, smoothing=False).nll
        finally:
            self.training = was_training

    def topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best tokens. Shape: (N, d) -> (N, k) log-probs, descending, and (N, k) tokens."""
        self._check_k(k)
        scores, tokens = self.log_probs(features).topk(k, dim=-1)
        return scores, tokens

    def log_prob_of(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Exact log p of several tokens. Shape: (N, d), and (C,) or (N, C) -> (N, C) fp32."""
        tokens = tokens.expand(features.size(0), -1)
        count = tokens.size(1)
        return self.log_prob(features.repeat_interleave(count, dim=0), tokens.reshape(-1)).view(tokens.shape)

    def candidates(self, features: Tensor, k: int, tokens: Tensor) -> Candidates:
        """``topk`` and ``log_prob_of`` of the same features. Shape: (N, d), (C,)."""
        return Candidates(*self.topk(features, k), self.log_prob_of(features, tokens))

    def beam_candidates(
        self, features: Tensor, k: int, scores: Tensor, beam: int, without: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The k best continuations of all hypotheses of a sentence.

        Args:
            features: (N, d), those of a sentence's hypotheses together.
            k: continuations of a sentence.
            scores: (N,) of the hypotheses; -inf: not to be continued.
            beam: hypotheses of a sentence; N is a multiple of it.
            without: (W,) tokens that are not looked for.

        Returns:
            (N, k) log-probabilities and (N, k) tokens. The k best of ``scores + log-probability`` of a
            sentence are among them; what is not may be missing, and is -inf then.
        """
        found, tokens = self.topk(features, min(self.vocab_size, k + len(without)))
        found, place = found.masked_fill(torch.isin(tokens, without), -torch.inf).topk(k, dim=1)
        return found, tokens.gather(1, place)

    def label_loss(self, features: Tensor, labels: Labels) -> Tensor:
        """Loss of rows that have several labels, where tokens are labels: the sum of -log p over a row's
        labels.

        p is the probability that a label drawn from a row's labels is this one. Where each row has as many
        labels as the loss says, the order of p is that of how probable labels are to be right.

        Args:
            features: (N, d).
            labels: of every row: N lists, or (N, M) long padded with -1; those of a row all different.

        Returns:
            (N,) fp32 or wider; 0 for a row without labels.

        Raises:
            MHEError: another number of rows, a label outside 0..V-1.
        """
        rows, tokens = label_pairs(labels, features, self.vocab_size)
        nll = self.forward(features.index_select(0, rows), tokens, smoothing=False).nll
        return nll.new_zeros(len(features)).index_add(0, rows, nll)

    def label_topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best labels, as ``label_loss`` has learnt them; equal to those of scores of all V labels.

        Shape: (N, d) -> (N, k) log-probabilities, descending, and (N, k) labels.
        """
        return self.topk(features, k)

    def read(self, features: Tensor) -> Reading:
        """Features (N, d), of which several things are asked."""
        return Reading(self, features)

    def why_wide(self, beam: int) -> str | None:
        """Why a search of so many hypotheses a sentence does better to score all V tokens, where the weights
        are now, in a few words; None: it does not."""
        return None if self.finds_best else f"{type(self).__name__} scores the whole vocabulary"

    def input_rows(self, tokens: Tensor) -> Tensor | None:
        """What this head adds to the input embeddings of tokens, None: nothing. Shape: (...) -> (..., d)."""
        return None

    def _give_input_rows(self) -> None:
        """Have ``input_rows`` give rows, and the state dict say so."""
        self.has_input_rows = True
        # A number, no truth value: fairseq's mean of checkpoints divides it by how many there are.
        self.register_buffer(MARK, torch.tensor(1))

    def output_parameters(self) -> int:
        """Number of parameters this head adds to a model (tied ones are not counted)."""
        return sum(p.numel() for p in self.parameters())

    def set_num_updates(self, num_updates: int) -> None:
        """Told by fairseq before each update: what is sampled in an update depends on its number only,
        so that a resumed run, and two ranks beside one of twice the batch, draw the same samples."""
        self._updates = num_updates

    def _generator(self) -> torch.Generator | None:
        """The generator for what is sampled in training; None: torch's global one."""
        if not self.training:
            return torch.Generator().manual_seed(0)
        if self._updates is None:
            return None
        return torch.Generator().manual_seed(self._updates + 1)

    def _sample_tokens(
        self, count: int, device: torch.device, generator: torch.Generator | None = None
    ) -> Tensor:
        """``count`` tokens, one from each of ``count`` equal strata of 0..V-1, so that every token has
        the same expected number of draws. Shape: (count,) long."""
        generator = self._generator() if generator is None else generator
        return torch.from_numpy(self._sample_numbers(count, generator)).to(device, non_blocking=True)

    def _sample_numbers(self, count: int, generator: torch.Generator | None) -> np.ndarray:
        """``_sample_tokens`` on the host: torch takes as long for each of these steps as for a kernel."""
        jitter = to_numpy(torch.rand(count, generator=generator, dtype=torch.float64))
        tokens = ((np.arange(count) + jitter) * (self.vocab_size / count)).astype(np.int64)
        return tokens.clip(max=self.vocab_size - 1)

    def token_of_slot(self, slots: Tensor) -> Tensor:
        """(...) long -> (...) long; -1 at holes."""
        if self._token_of_slot.device != slots.device:
            self._token_of_slot = self._token_of_slot.to(slots.device)
        return self._token_of_slot[slots]

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self.vocab_size:
            raise MHEError(f"topk needs 1 <= k <= {self.vocab_size} (the vocabulary), got {k}")

    def _codebook_changed(self) -> None:
        """Rebuild what was derived from ``self.codebook``."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        slots = state_dict.get(prefix + "codebook_slots")
        lengths = state_dict.get(prefix + "codebook_lengths")
        if slots is not None and lengths is not None:
            self._check_loaded(slots, tuple(lengths.tolist()))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_loaded(self, slots: Tensor, lengths: tuple[int, ...]) -> None:
        if slots.numel() != self.vocab_size:
            raise MHEError(
                f"the checkpoint's codebook is for {slots.numel()} tokens and the dictionary has "
                f"{self.vocab_size}; use the dictionary the model was trained with{TASKS_FLAGS}"
            )
        if lengths != self.codebook.lengths:
            theirs, ours = (",".join(map(str, each)) for each in (lengths, self.codebook.lengths))
            raise MHEError(
                f"the checkpoint's codebook has lengths {theirs} and this model's has {ours}; "
                f"give --mhe-lengths {theirs}"
            )
        loaded = Codebook(lengths, slots, dictionary=self.codebook.dictionary)
        if loaded == self.codebook:
            return
        if not self.adopt_codebook:
            raise MHEError(
                f"the checkpoint's codebook (fingerprint {loaded.fingerprint}, {len(loaded)} tokens) is not "
                f"this model's (fingerprint {self.codebook.fingerprint}, {self.vocab_size} tokens); give "
                "--mhe-codebook the file it was trained with"
            )
        self.codebook = loaded
        self._token_of_slot = loaded.token_of_slot
        self._codebook_changed()


def _check_calls(kind: type) -> None:
    """Have what a class defines of ``_CALLED`` look at what it is given."""
    for name in _CALLED:
        if name in kind.__dict__:
            setattr(kind, name, _checked(kind.__dict__[name]))


_check_calls(OutputHead)


def to_numpy(drawn: Tensor) -> np.ndarray:
    """Numbers drawn on the CPU, inside the transforms of torch.func too."""
    with torch._C._DisableFuncTorch():
        return _unwrapped(drawn).numpy()


def to_list(numbers: Tensor) -> list[Any]:
    """``numbers.tolist()``, inside the transforms of torch.func too, where torch 2.6 cannot do it."""
    with torch._C._DisableFuncTorch():
        found: list[Any] = _unwrapped(numbers).tolist()
        return found


def _unwrapped(tensor: Tensor) -> Tensor:
    # Not what vmap has wrapped: that has more dimensions inside, and reading it is torch's error to raise.
    while torch._C._functorch.is_gradtrackingtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def wide(tensor: Tensor) -> Tensor:
    """fp32 for half precision and fp32, float64 for float64: the type soft-maxes are computed in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
