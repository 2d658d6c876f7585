"""Whether kernels serve a ``ProductHead``, and what they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mhe_fairseq.heads.base import HeadLoss, wide
from mhe_fairseq.heads.kernels import dispatch
from mhe_fairseq.heads.kernels.product_tables import Tables, fits, make_tables

if TYPE_CHECKING:
    from mhe_fairseq.heads.kernels.product import Outputs, Plan, Weights
    from mhe_fairseq.heads.product import ProductHead

#: Bytes of logits at a time where no gradient is wanted.
_BLOCK = 2**26

#: Tokens of the smoothing term of a mixture.
SMOOTHING_TOKENS = 64


def kernel_loss(
    head: ProductHead, features: Tensor, target: Tensor, smoothing: bool, accuracy: bool
) -> HeadLoss | None:
    """``head(features, target, smoothing, accuracy)`` by kernels; None: plain torch has to do it."""
    if not len(features) or not dispatch.serve(features, head.weight):
        return None
    tables = _tables(head)
    if tables is None:
        return None
    # Only now: triton need not be there where kernels do not serve.
    from mhe_fairseq.heads.kernels import product as kernels

    own = [features, head.rows(), head.bias]
    if head.gate is not None:
        own += [head.gate.weight, head.gate.bias]
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        own = [each.to(torch.get_autocast_dtype(kind)) for each in own]
    if any(each.dtype != own[0].dtype for each in own):
        return None
    features, weights = own[0], kernels.Weights(*own[1:])
    target = target.long().contiguous()
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in own)
    count = min(SMOOTHING_TOKENS, head.vocab_size) if smoothing and head.mixtures > 1 else 0
    hits = accuracy and head.mixtures == 1
    plan = kernels.Plan(tables, head.mixtures, head.vocab_size, count, smoothing, hits)

    def rehearse() -> None:
        _rehearse(kernels, plan, weights, head.codebook_slots, learns)

    def run() -> HeadLoss:
        drawn = None
        if count:
            # On the CPU, where the generator is; the device need not be waited for.
            drawn = head._sample_tokens(count, torch.device("cpu")).to(features.device, non_blocking=True)
        batch = kernels.Batch(features, target, drawn, head.codebook_slots)
        exact = plan if drawn is None else plan._replace(drawn=len(drawn))
        # Autocast would know some of the products and not others.
        with torch.autocast(kind, enabled=False):
            if not learns:
                return _by_blocks(head, kernels, batch, weights, exact, accuracy)
            outputs = kernels.Outputs(*kernels.ProductLoss.apply(*own, *_padding(weights), *batch[1:], exact))
            stats = _stats(head, outputs, target, accuracy)
            return HeadLoss(outputs.nll, outputs.smooth, stats)

    sizes = (tables.lengths, tables.full, tables.sets, tables.path_count, *plan[1:], *weights.rows.shape)
    return dispatch.attempt(("product", features.device, features.dtype, sizes, learns), rehearse, run)


def _padding(weights: Weights) -> tuple[None, ...]:
    return () if weights.gate is not None else (None, None)


def _tables(head: ProductHead) -> Tables | None:
    """Those of the head's codebook, made the first time that they are asked for; None: it is not for kernels."""
    device = head.weight.device
    if device not in head.kernel_tables:
        made = None
        if fits(head.lattice):
            made = make_tables(head.lattice, head.digit_counts, head.vocab_size, device)
        head.kernel_tables[device] = made
    return head.kernel_tables[device]


@torch.no_grad()
def _rehearse(kernels: Any, plan: Plan, weights: Weights, slots: Tensor, learns: bool) -> None:
    """One token, past autograd: inside ``torch.func`` no tensor may be made to require a gradient."""
    blank = kernels.Weights(*(None if w is None else _zeros(w) for w in weights))
    features = blank.rows[:1]
    token = torch.zeros(1, dtype=torch.long, device=slots.device)
    drawn = token.expand(plan.drawn).contiguous() if plan.drawn else None
    batch = kernels.Batch(features, token, drawn, slots)
    with torch.autocast(slots.device.type, enabled=False):
        out = kernels.forward_pass(batch, blank, plan, kernels.empty_outputs(features, plan))
        if learns:
            kept = (out.logits, out.gate, out.parts)
            kernels.backward_pass(batch, blank, plan, kept, out.nll, out.smooth, (True,) * 5)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)


def _by_blocks(
    head: ProductHead, kernels: Any, batch: Any, weights: Weights, plan: Plan, accuracy: bool
) -> HeadLoss:
    """The loss without gradients: only some rows' logits are there at a time."""
    nll, smooth, stats, hits, _ = kernels.empty_outputs(batch.features, plan)
    width = batch.features.element_size() * weights.rows.size(0)
    # A multiple of 64: whatever N, a block's first number is aligned.
    step = max(64, _BLOCK // width // 64 * 64)
    parts: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for begin in range(0, len(nll), step):
            rows = slice(begin, begin + step)
            block = batch._replace(features=batch.features[rows], target=batch.target[rows])
            outputs = kernels.forward_pass(block, weights, plan, (nll, smooth, stats, hits, begin))
            parts.append(_stats(head, outputs, block.target, accuracy))
    together = (
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]
    )
    return HeadLoss(nll, smooth, together)


@torch.no_grad()
def _stats(head: ProductHead, outputs: Outputs, target: Tensor, accuracy: bool) -> dict[str, Tensor]:
    """As ``HeadLoss`` has them."""
    stats = {f"digit_{h + 1}_nll": nll for h, nll in enumerate(outputs.stats.unbind())}
    if not accuracy:
        return stats
    if outputs.hits is not None and head.lattice.full:
        stats |= _hits(outputs.hits)
        # The best token is that of the best digits.
        return stats | {"accuracy": outputs.hits.amin(dim=0)}
    logits = wide(outputs.logits)
    log_gate = head._log_gate(logits, outputs.gate)
    if outputs.hits is None:
        return stats | head._accuracy(logits, log_gate, target)
    return stats | _hits(outputs.hits) | {"accuracy": head._token_accuracy(logits, log_gate, target)}


def _hits(hits: Tensor) -> dict[str, Tensor]:
    return {f"digit_{h + 1}_accuracy": hit for h, hit in enumerate(hits.unbind())}
