"""Kernels in Triton's interpreter, on tensors of the CPU: for the tests of this folder only."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import pytest

from mhe_fairseq.heads import kernels
from mhe_fairseq.heads.kernels import dispatch
from scripts.common import faster_interpreter

# Triton decides when it decorates a kernel. A head imports them where it first asks for one, which may be in
# another folder's tests; this is read before any test runs.
if find_spec("triton") is not None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for each in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
            import_module(each.name)


class _Everything(set[object]):
    def __contains__(self, key: object) -> bool:
        return True


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is rehearsed, which would double the time: the interpreter compiles nothing."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv(dispatch.SWITCH, raising=False)
    monkeypatch.setattr(dispatch, "_ready", _Everything())
    monkeypatch.setattr(dispatch, "_broken", set())
    faster_interpreter.install()
    yield
