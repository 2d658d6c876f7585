"""The vanilla projection under the contract of a head: the reference for tests and benchmarks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import HeadLoss, OutputHead, wide
from mhe_fairseq.heads.labels import Labels, padded_labels
from mhe_fairseq.heads.margin import Margin, unit
from mhe_fairseq.heads.pieces import loss_in_pieces
from mhe_fairseq.heads.reading import Reading
from mhe_fairseq.heads.rows.tied import OutputTable
from mhe_fairseq.heads.wide_best import SoftmaxReading
from mhe_fairseq.heads.wide_product import wide_linear

#: In the state dict of a head whose scores are cosines: their scale.
SCALE = "cosine_scale"


class SoftmaxHead(OutputHead):
    """p(y) = softmax(W x)_y with W of V x d.

    With ``margin`` the logits are scaled cosines of the features and W's rows, and in training the target's
    has the margin: ``nll`` is then the loss of ArcFace or CosFace. In eval mode, and always in ``log_prob``,
    ``log_probs`` and ``topk``, they are the scaled cosines alone. The state dict has the scale
    (``cosine_scale``), and a head of another scale, or without one, refuses it.

    Args:
        dim: d.
        codebook: gives V; its digits are not used.
        tied: an ``nn.Embedding`` with a (V, d) weight to use as W.
        chunk: at most this many rows of the N x V logits at a time, recomputed in the backward pass
            (0: all at once). Memory O(chunk x V) for a third more arithmetic.
        margin: score by angle, with a margin in training.

    Raises:
        MHEError: a negative ``chunk``, or ``tied`` of another shape.
    """

    def __init__(
        self,
        dim: int,
        codebook: Codebook,
        tied: nn.Embedding | None = None,
        chunk: int = 0,
        margin: Margin | None = None,
    ) -> None:
        super().__init__(dim, codebook)
        if chunk < 0:
            raise MHEError(f"chunk is a number of rows, 0 for all at once; got {chunk}")
        self.chunk = chunk
        self.margin = margin
        if margin is not None:
            self.register_buffer(SCALE, torch.tensor(margin.scale))
        self._make_table(tied)

    def _make_table(self, tied: nn.Embedding | None) -> None:
        self.table = OutputTable(self.vocab_size, self.dim, tied)

    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        features, weight = self.scored(features)
        loss = _nll if self.margin is None or not self.training else partial(_margin_nll, self.margin)
        if 0 < self.chunk < features.size(0):
            nll = loss_in_pieces(loss, self.chunk, features, weight, target)
        else:
            nll = loss(features, weight, target)
        smooth = None
        if smoothing and self.margin is not None:
            score, mean = self._target_and_mean(features, target)
            smooth = nll + score - mean
        elif smoothing:
            # mean_v -log p(v) = log Z - x . mean_v W_v = nll + x . (W_target - mean_v W_v): exact, O(d)
            # a token, no second pass over the logits.
            contrast = F.embedding(target, weight) - weight.mean(dim=0)
            smooth = nll + (wide(features) * wide(contrast)).sum(dim=-1)
        stats = {"accuracy": self._correct(features, weight, target)} if accuracy else {}
        return HeadLoss(nll, smooth, stats)

    def log_probs(self, features: Tensor) -> Tensor:
        return F.log_softmax(wide_linear(*self.scored(features)), dim=-1)

    def topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self._check_k(k)
        if torch.is_grad_enabled() or not self._is_on_cpu:
            logits = wide_linear(*self.scored(features))
            best, tokens = logits.topk(k, dim=-1)
            return best - logits.logsumexp(dim=-1, keepdim=True), tokens
        return SoftmaxReading(self, features).topk(k)

    def read(self, features: Tensor) -> Reading:
        return SoftmaxReading(self, features)

    def why_wide(self, beam: int) -> str | None:
        # All V logits are needed all the same, but they are gone through less often than in fairseq's search.
        return None if self._is_on_cpu else super().why_wide(beam)

    @property
    def _is_on_cpu(self) -> bool:
        return self.codebook_slots.device.type == "cpu"

    def label_loss(self, features: Tensor, labels: Labels) -> Tensor:
        """One against all, the usual dense layer of multi-label classification: binary cross-entropy of
        every label, sigmoid(W x), summed over the V labels.

        Args and errors: those of ``OutputHead.label_loss``; ``chunk`` bounds the rows of logits held.
        """
        self._check_labelled()
        padded = padded_labels(labels, len(features), self.vocab_size).to(features.device)
        if 0 < self.chunk < features.size(0):
            return loss_in_pieces(_binary, self.chunk, features, self.table.weight, padded)
        return _binary(features, self.table.weight, padded)

    def label_topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As ``OutputHead.label_topk``; scores are logs of sigmoids."""
        self._check_labelled()
        self._check_k(k)
        best, labels = wide_linear(features, self.table.weight).topk(k, dim=-1)
        return F.logsigmoid(best), labels

    def _check_labelled(self) -> None:
        if self.margin is not None:
            raise MHEError(
                "a margin is for rows of one label each, and this head was asked for several a row; make it "
                "with margin=None"
            )

    def scored(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features and rows whose products are the scores. Shape: (N, d) -> (N, d), (V, d)."""
        weight = self.table.weight
        if self.margin is None:
            return features, weight
        return self._angular(features), unit(wide(weight)).to(weight.dtype)

    def _angular(self, features: Tensor) -> Tensor:
        """Those of the margin, if there is one. Shape: (N, d) -> (N, d)."""
        return features if self.margin is None else self.margin.features(features)

    def _target_and_mean(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The target's score and the mean over all V tokens, of a head with a margin. Differentiable.

        Shape: (N, d) as the margin gives them, (N,) -> (N,), (N,).
        """
        weight, x = wide(self.table.weight), wide(x)
        score = (x * unit(F.embedding(target, weight))).sum(dim=-1)
        return self._with_margin(score, x @ unit(weight).mean(dim=0))

    def _with_margin(self, score: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The target's score and the mean over all, from both without the margin, which training has."""
        if self.margin is None or not self.training:
            return score, mean
        bent = self.margin.target(score)
        return bent, mean + (bent - score) / self.vocab_size

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = 0.0 if self.margin is None else self.margin.scale
        scale = state_dict.get(prefix + SCALE)
        theirs = 0.0 if scale is None else float(scale)
        # A model in half precision has rounded it.
        if prefix + "codebook_slots" in state_dict and abs(theirs - own) > 0.01 * own:
            kinds = [f"cosines times {each:g}" if each else "products" for each in (theirs, own)]
            raise MHEError(
                f"the weights to be loaded were trained for scores that are {kinds[0]} of features and rows, "
                f"and this head's are {kinds[1]}; make it with "
                + (f"margin=Margin(scale={theirs:g})" if theirs else "margin=None")
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _pieces(self, features: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
        size = self.chunk or max(1, features.size(0))
        return list(zip(features.split(size), target.split(size), strict=True)) or [(features, target)]

    @torch.no_grad()
    def _correct(self, features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        parts = [F.linear(x, weight).argmax(dim=-1).eq(y) for x, y in self._pieces(features, target)]
        return wide(torch.cat(parts).to(features.dtype))


def _binary(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """(N, d), (V, d), (N, M) padded below 0 -> (N,)."""
    logits = wide(F.linear(features, weight))
    row, place = (labels >= 0).nonzero(as_tuple=True)
    # log(1 + e^z) of every label, less z of the right ones: without a table of the V targets.
    right = logits[row, labels[row, place]]
    return F.softplus(logits).sum(dim=-1).index_add(0, row, -right)


def _nll(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """(N, d), (V, d), (N,) -> (N,) -log softmax(W x)_target, arithmetic after the product in fp32."""
    if features.dtype in (torch.float32, torch.float64):
        # torch has it since 2.13.
        fused = getattr(F, "linear_cross_entropy", None)
        if fused is not None:
            nll: Tensor = fused(features, weight, target, reduction="none")
            return nll
    return F.cross_entropy(wide(F.linear(features, weight)), target, reduction="none")


def _margin_nll(margin: Margin, features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """``_nll`` with the margin on the target's score; features and rows are the margin's."""
    logits, place = wide(F.linear(features, weight)), target.unsqueeze(-1)
    bent = margin.target(logits.gather(-1, place))
    return F.cross_entropy(logits.scatter(-1, place, bent), target, reduction="none")
