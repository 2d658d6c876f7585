"""``fairseq-validate --bf16`` scores our models in bf16.

fairseq's commands know ``--fp16`` only. The others tell a model what it is to be prepared for
(``models/base.py``), this one does not.

In fairseq 0.12. Can go when ``fairseq-validate`` calls ``prepare_for_inference_``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairseq import checkpoint_utils

from mhe_fairseq.fairseq_fixes.precision import check_precision

_COMMAND = "fairseq_cli.validate"

_stock: Callable[..., Any] | None = None


def install() -> None:
    """Where this process is ``fairseq-validate``, take the place of its ``main``."""
    global _stock
    command = _command()
    if command is not None and command.main is not main:
        _stock = command.main
        command.main = main


def main(cfg: Any, override_args: Any = None) -> Any:
    """fairseq's, with our models in bf16 where that is asked for.

    A function of this module, by its own name: for several GPUs, fairseq sends it to processes it spawns.

    Raises:
        MHEError: a precision that the device cannot compute in.
    """
    if _stock is None:
        importlib.import_module(_COMMAND)
        install()
    assert _stock is not None
    check_precision(cfg.common)
    if not cfg.common.bf16:
        return _stock(cfg, override_args)
    with _loaded_in_bf16():
        return _stock(cfg, override_args)


def _command() -> Any:
    """The command's module; started with ``python -m`` it has another name."""
    started: Any = sys.modules.get("__main__")
    if getattr(getattr(started, "__spec__", None), "name", None) == _COMMAND:
        return started
    return sys.modules.get(_COMMAND)


@contextmanager
def _loaded_in_bf16() -> Iterator[None]:
    load = checkpoint_utils.load_model_ensemble_and_task

    def load_model_ensemble_and_task(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        for model in loaded[0]:
            if getattr(model, "has_mhe_head", False):
                model.to(torch.bfloat16)
        return loaded

    checkpoint_utils.load_model_ensemble_and_task = load_model_ensemble_and_task
    try:
        yield
    finally:
        checkpoint_utils.load_model_ensemble_and_task = load
