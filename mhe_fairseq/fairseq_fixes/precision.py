"""``--bf16`` trains on GPUs and CPUs, and a precision that cannot be computed in is told in one sentence.

fairseq's command line takes ``--bf16`` to mean a TPU, sets ``--tpu``, and ends without torch_xla. Its trainer
knows bf16 on any device: a hydra config with ``common.bf16=true`` has always trained so.

In fairseq 0.12. Can go when its command line sets ``--tpu`` for ``--tpu`` alone.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from fairseq import options
from fairseq.trainer import Trainer

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap


def install() -> None:
    """Take the place of fairseq's parser of arguments, and check what its trainer is to train in.

    fairseq imports a ``--user-dir`` when a command makes its parser, which is before it parses. (Given its
    arguments by a program, it imports while it parses them: there the first call is still fairseq's own.)
    """
    wrap(options, "parse_args_and_arch", _without_tpu)
    wrap(Trainer, "__init__", _checked)


def check_precision(common: Any) -> None:
    """Refuse what the device of this process cannot compute in.

    Args:
        common: fairseq's settings of that name.

    Raises:
        MHEError: ``--fp16`` and ``--bf16`` together, bf16 on a GPU without it, or a TPU without its library.
    """
    if common.tpu and importlib.util.find_spec("torch_xla") is None:
        raise MHEError(
            "--tpu needs torch_xla, which is not installed; without --tpu, --bf16 runs on GPUs and CPUs"
        )
    if common.fp16 and common.bf16:
        raise MHEError("--fp16 and --bf16 are two precisions; give one of them")
    on_gpu = torch.cuda.is_available() and not common.cpu and not common.tpu
    # torch emulates bf16 on older cards, many times slower than what it is to speed up.
    if common.bf16 and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        major, minor = torch.cuda.get_device_capability()
        raise MHEError(
            f"--bf16: {torch.cuda.get_device_name()} (compute capability {major}.{minor}) has no bf16 "
            "arithmetic, which begins with 8.0; give --fp16, or neither for fp32"
        )


def _without_tpu(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parse_args_and_arch(
        parser: argparse.ArgumentParser, input_args: list[str] | None = None, *rest: Any, **settings: Any
    ) -> Any:
        try:
            parsed = parse(parser, input_args, *rest, **settings)
        except ValueError:
            # fairseq's, of TPUs: before it sets --tpu it does not look for --fp16.
            given, _ = parser.parse_known_args(input_args)
            if _has(given, "fp16") and _has(given, "bf16"):
                raise MHEError("--fp16 and --bf16 are two precisions; give one of them") from None
            raise
        args = parsed[0] if isinstance(parsed, tuple) else parsed
        if getattr(args, "tpu", False) and getattr(args, "bf16", False):
            # By now the parser knows every flag there is.
            args.tpu = getattr(parser.parse_known_args(input_args)[0], "tpu", False)
        return parsed

    return parse_args_and_arch


def _has(given: argparse.Namespace, kind: str) -> bool:
    return any(getattr(given, name, False) for name in (kind, f"memory_efficient_{kind}"))


def _checked(begin: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(cfg, argparse.Namespace):
            check_precision(cfg.common)
        begin(self, cfg, *args, **kwargs)

    return __init__
