"""Whether kernels serve a ``ProductHead``, and what they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mhe_fairseq.heads.base import HeadLoss, wide
from mhe_fairseq.heads.kernels import dispatch
from mhe_fairseq.heads.kernels.product_tables import Tables, fits, make_tables

if TYPE_CHECKING:
    from mhe_fairseq.heads.kernels.product import Batch, Outputs, Weights
    from mhe_fairseq.heads.kernels.product_plan import Plan
    from mhe_fairseq.heads.product.head import ProductHead

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

    given = [features, head.rows(), head.bias]
    if head.gate is not None:
        given += [head.gate.weight, head.gate.bias]
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        given = [each.to(torch.get_autocast_dtype(kind)) for each in given]
    if any(each.dtype != given[0].dtype for each in given):
        return None
    count = min(SMOOTHING_TOKENS, head.vocab_size) if smoothing and head.mixtures > 1 else 0
    hits = accuracy and head.mixtures == 1
    plan = kernels.Plan(tables, head.mixtures, head.vocab_size, count, smoothing, hits)
    target = target.long().contiguous()
    # Inside a transform of torch.func kernels get at plain tensors in an autograd.Function only.
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in given)
    learns = learns or torch._C._functorch.peek_interpreter_stack() is not None
    features, weights = given[0], kernels.Weights(*given[1:])

    def run() -> HeadLoss:
        drawn, exact = None, plan
        if count:
            drawn = head._sample_tokens(count, features.device)
            exact = plan._replace(drawn=len(drawn))
        batch = kernels.Batch(features, target, drawn, head.codebook_slots)
        # Autocast would know some of the products and not others.
        with torch.autocast(kind, enabled=False):
            if not learns:
                return _by_blocks(head, kernels, batch, weights, exact, accuracy)
            outputs = kernels.Outputs(*kernels.ProductLoss.apply(exact, features, *weights, *batch[1:]))
        return HeadLoss(outputs.nll, outputs.smooth, _stats(head, outputs, target, accuracy))

    sizes = (tables.lengths, tables.full, tables.sets, tables.path_count, *plan[1:])
    return dispatch.attempt(
        ("product", sizes, learns, *map(dispatch.kind_of, given)),
        lambda: _rehearse(
            kernels, plan, kernels.Batch(features, target, None, head.codebook_slots), weights, learns
        ),
        run,
    )


def _tables(head: ProductHead) -> Tables | None:
    """Those of the head's codebook, made when they are first asked for; None: it is not for kernels."""
    device = head.weight.device
    if device not in head.kernel_tables:
        made = None
        if fits(head.lattice, head.mixtures):
            # What is made inside a transform of torch.func is of that transform: kernels cannot read it.
            with torch._C._DisableFuncTorch():
                made = make_tables(head.lattice, head.codebook, device)
        head.kernel_tables[device] = made
    return head.kernel_tables[device]


@torch.no_grad()
def _rehearse(kernels: Any, plan: Plan, batch: Batch, weights: Weights, learns: bool) -> None:
    """The launches of a step of one token."""
    target = batch.target[:1]
    drawn = target.new_zeros(plan.drawn) if plan.drawn else None
    batch = kernels.Batch(batch.features[:1], target, drawn, batch.slots)
    with torch.autocast(target.device.type, enabled=False):
        out = kernels.forward_pass(batch, weights, plan, kernels.empty_outputs(batch.features, plan))
        if learns:
            kept, losses = (out.logits, out.gate, out.parts), (out.nll, out.smooth)
            kernels.backward_pass(batch, weights.rows, weights.gate, plan, kept, losses, (True,) * 5)


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
