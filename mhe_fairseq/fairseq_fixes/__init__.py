"""Repairs of fairseq, one module each. A module's docstring says what is wrong, how it is mended, and when
the repair can go; its ``install`` takes the place of fairseq's functions, and may be called twice."""

from __future__ import annotations

import importlib

#: In the order in which they are installed; the first is for what the others refuse.
FIXES = (
    "excepthook",
    "attention",
    "broadcast",
    "checkpoints",
    "cpu_ranks",
    "ema",
    "fp16_on_cpu",
    "host_reads",
    "loading",
    "masked_dictionaries",
    "misfit",
    "numpy_names",
    "other_languages",
    "precision",
    "pretrained_bart",
    "saving",
    "tracing",
    "validation",
)


def install() -> None:
    """Install them all.

    Raises:
        MHEError: an environment variable of one of them has a value that it does not know.
    """
    for name in FIXES:
        importlib.import_module(f"{__name__}.{name}").install()
