"""When kernels serve, what is said of it, and what happens when they do not work."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, SamplingHead
from mhe_fairseq.heads.kernels import dispatch
from tests.heads.oracle import features_for, targets_for

BOOK = Codebook((4, 5))
X, Y = features_for(6, 8, torch.float32, 1), targets_for(BOOK, 6, 1)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What has been said since, as if nothing had been before."""
    monkeypatch.setattr(dispatch, "_said", set())
    caplog.set_level(logging.INFO, logger="mhe_fairseq.heads.kernels.dispatch")
    return lambda: [record.getMessage() for record in caplog.records if "mhe:" in record.getMessage()]


def test_a_run_says_once_that_kernels_serve(log: Callable[[], list[str]]) -> None:
    for _ in range(3):
        assert dispatch.serve(X)
    (line,) = log()
    assert line.startswith("mhe: the output layer runs in kernels, triton 3.")


def test_the_switch_turns_them_off(log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHE_KERNELS", "0")
    assert not dispatch.serve(X)
    assert log() == ["mhe: the output layer runs in plain torch (MHE_KERNELS=0)"]


def test_without_the_interpreter_the_cpu_is_plain_torchs(
    log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not dispatch.serve(X)
    (line,) = log()
    assert "plain torch" in line and "on the CPU, not on a CUDA GPU" in line


@pytest.mark.parametrize("head", [CascadeHead(8, BOOK), SamplingHead(8, BOOK)], ids=["cascade", "sampling"])
def test_asked_for_without_a_gpu(head: CascadeHead | SamplingHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("MHE_KERNELS", "1")
    with pytest.raises(MHEError, match="MHE_KERNELS=1 .* features are on the CPU, not on a CUDA GPU"):
        head.train()(X, Y)


def test_asked_for_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHE_KERNELS", "1")
    monkeypatch.setattr(dispatch, "triton_version", lambda: None)
    with pytest.raises(MHEError, match="MHE_KERNELS=1 .* triton is not installed"):
        dispatch.serve(X)


def test_a_triton_too_old(log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_version", lambda: "2.1.0")
    assert not dispatch.serve(X)
    assert log() == ["mhe: the output layer runs in plain torch (triton 2.1.0 is older than 3.2)"]
    monkeypatch.setenv("MHE_KERNELS", "1")
    with pytest.raises(MHEError, match="triton 2.1.0 is older than 3.2"):
        dispatch.serve(X)


def test_another_value_of_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHE_KERNELS", "yes")
    with pytest.raises(MHEError, match="MHE_KERNELS is 0 .*got 'yes'"):
        dispatch.serve(X)


def test_float64_is_plain_torchs() -> None:
    assert not dispatch.serve(X.double())
    assert not dispatch.serve(X, X.double())


@pytest.mark.parametrize("name", ["cascade", "sampling"])
def test_a_kernel_that_does_not_compile(
    name: str, log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mhe_fairseq.heads.kernels import level

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("PTX JIT compilation failed\nand more")

    # The backward's kernels are found out in the rehearsal, too.
    monkeypatch.setattr(level, "table_kernel", {(n,): fails for n in range(10_000)})
    monkeypatch.setattr(dispatch, "_ready", set())
    head = CascadeHead(8, BOOK) if name == "cascade" else SamplingHead(8, BOOK)
    x = X.clone().requires_grad_()
    for _ in range(2):
        head.train().set_num_updates(1)
        head(x, Y).nll.sum().backward()
    assert x.grad is not None and bool(x.grad.any())
    said = [line for line in log() if "does not work here" in line]
    assert len(said) == 1
    assert "plain torch runs" in said[0] and "PTX JIT compilation failed" in said[0]
    assert "and more" not in said[0]


def test_out_of_memory_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_ready", set())

    def full() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        dispatch.attempt("key", full, lambda: 1)
    assert dispatch.attempt("key", lambda: None, lambda: 1) == 1


def test_a_rehearsal_is_made_once_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_ready", set())
    made = []
    for key in ("a", "a", "b", "a"):
        assert dispatch.attempt(key, lambda: made.append(0), lambda: 7) == 7
    assert len(made) == 2


@pytest.mark.parametrize("name", ["cascade", "sampling"])
@pytest.mark.parametrize("how", ["plain", "no_grad", "torch.func"])
def test_the_first_step_of_all_is_rehearsed(
    name: str, how: str, log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: set[object] = set()
    monkeypatch.setattr(dispatch, "_ready", ready)
    head = CascadeHead(8, BOOK) if name == "cascade" else SamplingHead(8, BOOK)
    head.train().set_num_updates(1)
    if how == "torch.func":
        torch.func.grad(lambda x: head(x, Y).nll.sum())(X)
    else:
        with torch.set_grad_enabled(how == "plain"):
            head(X, Y)
    assert len(ready) == (how != "torch.func")
    assert not [line for line in log() if "does not work" in line]
    assert not head.codebook_slots.requires_grad and all(each.grad is None for each in head.parameters())
