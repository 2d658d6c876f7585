"""Settings and fixtures of all tests."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# Triton's own functions are made for its interpreter, or not, when it is first imported, and parts of torch
# import it. The tests of kernels (tests/heads/kernels) need the former; all others run without it.
if importlib.util.find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"
    import triton  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.helpers import make_toy_data

# Tests run in several processes on few cores; more threads in each only get in each other's way.
torch.set_num_threads(1)

# The same examples on every run: a failure seen once can be seen again. No deadline, because the first
# call into torch is slow and a busy machine is no bug.
settings.register_profile(
    "mhe",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("mhe")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With the long files first no process works alone on one at the end; others stay in their order."""
    order = {f"tests/{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.location[0], len(order)))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin folder: 200/30/30 pairs of a reversed, capitalised language, ``-s src -t tgt``."""
    return make_toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def lm_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin folder for language models: 200/30/30 sentences of the toy language."""
    # Not above: fairseq sets up logging when it is imported, and pytest's has to be there before.
    from tests.language_model import make_lm_data

    return make_lm_data(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="session")
def language_models(lm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by the name of a head: product, cascade and sampling."""
    from tests.language_model import train_three

    return train_three(lm_data, tmp_path_factory.mktemp("language-models"))


@pytest.fixture(scope="session")
def stock_models(toy_data: Path, lm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of fairseq's own transformer, transformer_lm and roberta, by these names."""
    from tests.stock import train_stock

    return train_stock(toy_data, lm_data, tmp_path_factory.mktemp("stock-models"))
