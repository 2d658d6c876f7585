"""Kernels in Triton's interpreter, on tensors of the CPU: for the tests of this folder only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mhe_fairseq.heads.kernels import dispatch
from scripts.common import faster_interpreter


class _Everything(set[object]):
    def __contains__(self, key: object) -> bool:
        return True


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton decides when it decorates a kernel, so this is set before any module with kernels is imported.

    Nothing is rehearsed, which would double the time: the interpreter compiles nothing.
    """
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv(dispatch.SWITCH, raising=False)
    monkeypatch.setattr(dispatch, "_ready", _Everything())
    monkeypatch.setattr(dispatch, "_broken", set())
    faster_interpreter.install()
    yield
