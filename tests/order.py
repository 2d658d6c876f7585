"""The order in which files of tests begin."""

from __future__ import annotations

import pytest

#: Files of which each takes half a minute and more, the longest first.
LONGEST = (
    "scripts/gpu/test_check_commands.py",
    "heads/kernels/test_search.py",
    "heads/kernels/test_cascade.py",
    "models/test_roberta_commands.py",
    "models/test_transformer.py",
    "test_half_precision_commands.py",
    "test_ranks.py",
    "test_faults.py",
    "scripts/recipes/test_quickstart.py",
    "scripts/study/test_study.py",
    "heads/kernels/test_commands.py",
    "examples/test_pretraining.py",
    "test_ema_commands.py",
    "docs/test_blocks_run.py",
    "scripts/recipes/test_pretrain_demo.py",
    "scripts/gpu/test_check.py",
    "scripts/gpu/test_kernels_report.py",
    "scripts/study/test_compare_language_models.py",
    "test_ensembles.py",
    "cli/test_analyze.py",
    "cli/test_export.py",
)


def longest_first(items: list[pytest.Item]) -> None:
    """So that no process works alone on a long file at the end; other files stay in their order."""
    order = {f"tests/{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.location[0], len(order)))
