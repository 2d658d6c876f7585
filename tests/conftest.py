"""Settings and fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-bin folder: 200/30/30 pairs of a reversed, capitalised language, ``-s src -t tgt``."""
    return make_toy_data(tmp_path_factory.mktemp("toy"))
