"""Bytes that operators and launches read and write, counted on the tensors they are given and make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mhe_fairseq.heads.kernels.launch import Launch

#: These touch a few numbers of what they are given.
_FEW = ("gather", "scatter_add", "index_put_")


class Traffic(TorchDispatchMode):
    """Every tensor an operator or kernel is given counts once, and every one it makes; views do not.

    ``saw`` is for ``launch.watched``: kernels do not run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        is_view = any(
            each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns
        )
        if not is_view and "empty" not in name and name not in _FEW:
            self.by[name] += _bytes(made)
            if "zeros" not in name and "ones" not in name:
                self.by[name] += _bytes((args, kwargs))
        return made

    def saw(self, launched: Launch) -> bool:
        name, given, constants = launched.kernel.__name__, launched.arguments, launched.constants
        total = _bytes(given)
        if name == "features_kernel":
            # It reads the gradients of a row's own block, or of the others, and may add to what it writes.
            dz, blocks = _bytes(given[2]), 1 + constants["S"]
            total -= dz - dz // blocks * (1 if constants["OWN"] else blocks - 1)
            total += _bytes(given[8]) if constants["ADD"] else 0
            if not constants["OWN"]:
                # Of the table it reads what parts drew.
                drawn = min(constants["PARTS"] * constants["S"], constants["R"])
                total -= _bytes(given[0]) * (constants["R"] - drawn) // constants["R"]
        if name in ("combine", "combine_backward") and not constants["GATED"]:
            total -= _bytes(given[0])  # logits, which only a mixture reads again
        self.by[name] += total
        return False

    @property
    def total(self) -> int:
        return sum(self.by.values())


def _bytes(tree: Any) -> int:
    leaves: Iterable[Any] = tree_leaves(tree)
    # What is expanded is no larger in memory.
    return sum(
        min(each.numel() * each.element_size(), each.untyped_storage().nbytes())
        for each in leaves
        if isinstance(each, torch.Tensor)
    )
