"""``--mhe-shard``: a head's table split over the ranks of a training, and fairseq's trainer told of it.

fairseq knows parameters that differ between ranks, those with an attribute ``expert``: their gradients are
not averaged. What it does not know is done here: the norm of all gradients counts every rank's part, so that
clipping is that of the whole table; a checkpoint gets the whole table and the optimiser's whole state, so
that it is the one of a training without ``--mhe-shard``, for any number of ranks; reading one, every rank
takes its part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from fairseq.distributed.legacy_distributed_data_parallel import LegacyDistributedDataParallel
from fairseq.trainer import Trainer
from torch import Tensor, nn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap
from mhe_fairseq.heads.sharded.shards import Shard
from mhe_fairseq.heads.sharded.state import ShardedHead, names_of_parts


def shard() -> Shard | None:
    """This rank's place, None where there is one rank only."""
    # A group of its own: what a head sends never meets what the rest of the training sends.
    return Shard.of(dist.new_group()) if _several_ranks() else None


def prepare(head: ShardedHead) -> None:
    """Mark a head's part for fairseq."""
    part, ranks = head.sharded.table, head.shard.size
    part.expert = True  # type: ignore[attr-defined]
    # Other gradients are averaged over ranks; this one is a sum.
    part.register_hook(lambda grad: grad / ranks)


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def install() -> None:
    """Have fairseq's trainer know of heads that are split. A model without one is trained as ever."""
    wrap(Trainer, "__init__", _checked)
    wrap(Trainer, "clip_grad_norm", _clipped)
    wrap(Trainer, "consolidate_optimizer", _gathered)
    wrap(Trainer, "state_dict", _joined)
    wrap(Trainer, "load_checkpoint", _loaded)
    wrap(LegacyDistributedDataParallel, "__init__", _evened)


def split_heads(model: nn.Module) -> dict[str, ShardedHead]:
    """Name in the model -> head, of those that are split."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ShardedHead)}


def _parts(trainer: Any) -> list[tuple[int, Tensor, ShardedHead]]:
    """Of every part of a table: its number among the optimiser's parameters, the parameter as the optimiser
    has it, and the head. Parameters of a model and those of its optimiser are in one order."""
    heads = iter(split_heads(trainer._model).values())
    return [
        (number, parameter, next(heads))
        for number, parameter in enumerate(trainer.optimizer.params)
        if hasattr(parameter, "expert")
    ]


# ---- wrappers


def _checked(method: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        method(self, *args, **kwargs)
        if split_heads(self._model):
            check_training(self.cfg)
            # torch's DDP must neither average nor copy what differs between ranks.
            self._model._ddp_params_and_buffers_to_ignore = names_of_parts(self._model)

    return __init__


def _evened(method: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        method(self, module, *args, **kwargs)
        if split_heads(module):
            # All of this buffer is summed over ranks, so it must be as large on each; parts are not in it.
            shared = sum(each.numel() for each in module.parameters() if not hasattr(each, "expert"))
            self.buffer_size = min(self.buffer_size, shared)

    return __init__


def check_training(cfg: Any) -> None:
    """Refuse what would treat a part of a table as if every rank had the same.

    Raises:
        MHEError: there is one.
    """
    common, parallel = cfg.common, cfg.distributed_training
    backend = parallel.ddp_backend
    flattened = (common.fp16 and not common.memory_efficient_fp16) or (
        common.bf16 and not common.memory_efficient_bf16
    )
    wrong = [
        (backend in ("fully_sharded", "slowmo"), f"--ddp-backend {backend}"),
        (getattr(parallel, "zero_sharding", "none") != "none", "--zero-sharding"),
        (cfg.optimization.use_bmuf, "--use-bmuf"),
        (cfg.ema.store_ema, "--store-ema"),
        (common.tpu, "--tpu"),
        (
            flattened and not common.fp16_no_flatten_grads,
            "a flat copy of all gradients (give --fp16-no-flatten-grads with --fp16 or --bf16)",
        ),
    ]
    found = [text for is_wrong, text in wrong if is_wrong]
    if found:
        raise MHEError(
            f"--mhe-shard gives every rank other rows; it cannot be combined with {' and '.join(found)}"
        )


def _clipped(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def clip_grad_norm(self: Any, clip_norm: float) -> Tensor:
        parts = _parts(self)
        if not parts:
            return method(self, clip_norm)

        def with_parts(norm: Tensor) -> Tensor:
            """The norm of what all ranks have alike -> of that and of every rank's parts."""
            grads = [part.grad for _, part, _ in parts if part.grad is not None]
            squares = torch.stack([torch.norm(grad, dtype=torch.float32) ** 2 for grad in grads]).sum()
            squares = squares.to(norm.device)
            dist.all_reduce(squares, group=self.data_parallel_process_group)
            return (norm**2 + squares).sqrt()

        total: Tensor = self.optimizer.clip_grad_norm(clip_norm, aggregate_norm_fn=with_parts)
        return total

    return clip_grad_norm


def _gathered(method: Callable[..., None]) -> Callable[..., None]:
    def consolidate_optimizer(self: Any) -> None:
        """Called on all ranks before one of them writes."""
        method(self)
        self._mhe_whole = None
        heads = split_heads(self._model)
        if not heads:
            return
        tables = {name: head.gather_rows(head.sharded.weight.detach()) for name, head in heads.items()}
        states: dict[int, dict[str, Tensor | None]] = {}
        if not self.cfg.checkpoint.no_save_optimizer_state:
            for number, part, head in _parts(self):
                kept = self.optimizer.optimizer.state.get(part, {})
                states[number] = {
                    key: head.gather_rows(value) for key, value in kept.items() if _is_of(part, value)
                }
        if self.is_data_parallel_master:
            self._mhe_whole = tables, states

    return consolidate_optimizer


def _joined(method: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def state_dict(self: Any) -> dict[str, Any]:
        state = method(self)
        whole = getattr(self, "_mhe_whole", None)
        if whole is None:
            return state
        self._mhe_whole = None  # it may be most of the memory
        tables, states = whole
        heads = split_heads(self._model)
        model = dict(state["model"])
        for name, table in tables.items():
            head = heads[name]
            del model[f"{name}.{head.sharded_name}"]
            model[f"{name}.{head.whole_name}"] = table
        state["model"] = model
        if "last_optimizer_state" in state:
            optimiser = dict(state["last_optimizer_state"])
            optimiser["state"] = dict(optimiser["state"])
            for number, kept in states.items():
                if kept:
                    optimiser["state"][number] = {**optimiser["state"][number], **kept}
            state["last_optimizer_state"] = optimiser
        return state

    return state_dict


def _loaded(method: Callable[..., Any]) -> Callable[..., Any]:
    def load_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        extra = method(self, *args, **kwargs)
        if split_heads(self._model) and self._optimizer is not None:
            for _, part, head in _parts(self):
                kept = self.optimizer.optimizer.state.get(part, {})
                for key, value in kept.items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != part.shape:
                        kept[key] = head.own_rows(value).contiguous()
        return extra

    return load_checkpoint


def _is_of(part: Tensor, value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == part.shape
