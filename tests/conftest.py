"""Settings and fixtures of all tests."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from pathlib import Path

# Triton's own functions are made for its interpreter, or not, when it is first imported, and parts of torch
# import it. The tests of kernels (tests/heads/kernels) need the former; all others run without it.
if importlib.util.find_spec("triton") is not None:
    os.environ["TRITON_INTERPRET"] = "1"
    import triton  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

import pytest
import torch

from tests.drawn import register_profiles
from tests.helpers import make_toy_data
from tests.order import longest_first
from tests.shared import made_once

# Tests run in several processes on few cores; more threads in each only get in each other's way.
torch.set_num_threads(1)

register_profiles()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin folder: 200/30/30 pairs of a reversed, capitalised language, ``-s src -t tgt``."""
    return made_once(tmp_path_factory, "toy", make_toy_data)


@pytest.fixture(scope="session")
def lm_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin folder for language models: 200/30/30 sentences of the toy language."""
    # Not above: fairseq sets up logging when it is imported, and pytest's has to be there before.
    from tests.language_model import make_lm_data

    return made_once(tmp_path_factory, "lm", make_lm_data)


@pytest.fixture(scope="session")
def language_models(lm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by the name of a head: product, cascade and sampling."""
    from tests.language_model import train_three

    return made_once(tmp_path_factory, "language-models", partial(train_three, lm_data))


@pytest.fixture(scope="session")
def stock_models(toy_data: Path, lm_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of fairseq's own transformer, transformer_lm and roberta, by these names."""
    from tests.stock import train_stock

    return made_once(tmp_path_factory, "stock-models", partial(train_stock, toy_data, lm_data))


@pytest.fixture(scope="session")
def many_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin folder of three languages, pairs aa-bb and aa-cc with one dictionary."""
    from tests.many_languages import make_many_data

    return made_once(tmp_path_factory, "many", make_many_data)


@pytest.fixture(scope="session")
def many_models(many_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of many languages in one model by the name of a head: product and sampling, trained with
    our task, and cascade, trained with fairseq's."""
    from tests.many_languages import train_three

    return made_once(tmp_path_factory, "many-models", partial(train_three, many_data))
