"""The vanilla projection under the contract of a head: the reference for tests and benchmarks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import HeadLoss, OutputHead, wide
from mhe_fairseq.heads.labels import Labels, padded_labels
from mhe_fairseq.heads.pieces import loss_in_pieces
from mhe_fairseq.heads.rows.tied import OutputTable
from mhe_fairseq.heads.wide_product import wide_linear


class SoftmaxHead(OutputHead):
    """p(y) = softmax(W x)_y with W of V x d.

    Args:
        dim: d.
        codebook: gives V; its digits are not used.
        tied: an ``nn.Embedding`` with a (V, d) weight to use as W.
        chunk: at most this many rows of the N x V logits at a time, recomputed in the backward pass
            (0: all at once). Memory O(chunk x V) for a third more arithmetic.

    Raises:
        MHEError: a negative ``chunk``, or ``tied`` of another shape.
    """

    def __init__(
        self, dim: int, codebook: Codebook, tied: nn.Embedding | None = None, chunk: int = 0
    ) -> None:
        super().__init__(dim, codebook)
        if chunk < 0:
            raise MHEError(f"chunk is a number of rows, 0 for all at once; got {chunk}")
        self.chunk = chunk
        self._make_table(tied)

    def _make_table(self, tied: nn.Embedding | None) -> None:
        self.table = OutputTable(self.vocab_size, self.dim, tied)

    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        weight = self.table.weight
        if 0 < self.chunk < features.size(0):
            nll = loss_in_pieces(_nll, self.chunk, features, weight, target)
        else:
            nll = _nll(features, weight, target)
        smooth = None
        if smoothing:
            # mean_v -log p(v) = log Z - x . mean_v W_v = nll + x . (W_target - mean_v W_v): exact, O(d)
            # a token, no second pass over the logits.
            contrast = F.embedding(target, weight) - weight.mean(dim=0)
            smooth = nll + (wide(features) * wide(contrast)).sum(dim=-1)
        stats = {"accuracy": self._correct(features, target)} if accuracy else {}
        return HeadLoss(nll, smooth, stats)

    def log_probs(self, features: Tensor) -> Tensor:
        return F.log_softmax(wide_linear(features, self.table.weight), dim=-1)

    def topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self._check_k(k)
        logits = wide_linear(features, self.table.weight)
        best, tokens = logits.topk(k, dim=-1)
        return best - logits.logsumexp(dim=-1, keepdim=True), tokens

    def label_loss(self, features: Tensor, labels: Labels) -> Tensor:
        """One against all, the usual dense layer of multi-label classification: binary cross-entropy of
        every label, sigmoid(W x), summed over the V labels.

        Args and errors: those of ``OutputHead.label_loss``; ``chunk`` bounds the rows of logits held.
        """
        padded = padded_labels(labels, len(features), self.vocab_size).to(features.device)
        if 0 < self.chunk < features.size(0):
            return loss_in_pieces(_binary, self.chunk, features, self.table.weight, padded)
        return _binary(features, self.table.weight, padded)

    def label_topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As ``OutputHead.label_topk``; scores are logs of sigmoids."""
        self._check_k(k)
        best, labels = wide_linear(features, self.table.weight).topk(k, dim=-1)
        return F.logsigmoid(best), labels

    def _pieces(self, features: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
        size = self.chunk or max(1, features.size(0))
        return list(zip(features.split(size), target.split(size), strict=True)) or [(features, target)]

    @torch.no_grad()
    def _correct(self, features: Tensor, target: Tensor) -> Tensor:
        parts = [
            F.linear(x, self.table.weight).argmax(dim=-1).eq(y) for x, y in self._pieces(features, target)
        ]
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
