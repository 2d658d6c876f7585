"""What ``fairseq-generate`` writes names the training of its model.

fairseq means its log to go where the translations go. It does not, since another module sets up logging
first; so the line that tells the signature is written there by itself.

In fairseq 0.12. Can go when its log goes where the translations go.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO

from mhe_fairseq.fairseq_fixes import wrap


def install() -> None:
    """Where this process is ``fairseq-generate``, have it do so."""
    generate: Any = sys.modules.get("fairseq_cli.generate")
    if generate is not None:
        wrap(generate, "_main", _traced)


def _traced(main: Callable[[Any, TextIO], Any]) -> Callable[[Any, TextIO], Any]:
    def _main(cfg: Any, output_file: TextIO) -> Any:
        handler = logging.StreamHandler(output_file)
        signatures = logging.getLogger("mhe_fairseq.models.signature")
        signatures.addHandler(handler)
        try:
            return main(cfg, output_file)
        finally:
            signatures.removeHandler(handler)

    return _main
