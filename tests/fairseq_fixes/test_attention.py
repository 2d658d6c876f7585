"""The switch of cuDNN's attention, without a GPU."""

from __future__ import annotations

import logging

import pytest
import torch

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import attention
from tests.helpers import run_command


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What torch was told, on a machine with CUDA."""
    told: list[bool] = []
    monkeypatch.delenv(attention.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: not told or told[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", told.append)
    return told


@pytest.mark.parametrize(
    ("by_default", "given", "told"),
    [(False, None, []), (False, "", []), (False, "0", [False]), (False, "1", [])]
    + [(True, None, [False]), (True, "0", [False]), (True, "1", [])],
)
def test_what_torch_is_told(
    by_default: bool,
    given: str | None,
    told: list[bool],
    enabled: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(attention, "OFF_BY_DEFAULT", by_default)
    if given is not None:
        monkeypatch.setenv(attention.VARIABLE, given)
    with caplog.at_level(logging.INFO, logger=attention.logger.name):
        attention.install()
        attention.install()
    # Said once, and only where something was changed.
    assert enabled == told and len(caplog.records) == len(told)
    if told:
        assert "MHE_CUDNN_ATTENTION=1" in caplog.records[0].getMessage()


def test_the_default_is_torchs() -> None:
    assert not attention.OFF_BY_DEFAULT


def test_nothing_is_done_without_cuda(enabled: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(attention.VARIABLE, "0")
    attention.install()
    assert enabled == []


def test_another_value_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention.VARIABLE, "off")
    with pytest.raises(MHEError, match="must be 0 .* or 1 .*, got 'off'"):
        attention.install()


@pytest.mark.slow
def test_another_value_ends_a_command() -> None:
    done = run_command(["python", "-c", "import mhe_fairseq"], env={attention.VARIABLE: "2"}, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("mhe_fairseq: error: MHE_CUDNN_ATTENTION must be 0 ")
