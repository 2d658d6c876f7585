"""The number of targets, counted before the model is called, and the tokens picked by it without a wait."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.utils import _to_kwargs

from mhe_fairseq.models.target_count import TargetCount, kept_positions
from tests.waits import Waits

PAD = 1


def some_target(rows: int = 3, length: int = 7) -> Tensor:
    target = torch.randint(4, (rows, length), generator=torch.Generator().manual_seed(1))
    assert target.numel() == 0 or target.eq(PAD).any()
    return target


@pytest.mark.parametrize("shape", [(3, 7), (0, 7), (3, 0)])
def test_it_is_the_number_that_is_not_padding(shape: tuple[int, int]) -> None:
    target = some_target(*shape)
    assert TargetCount(target, PAD).value() == int(target.ne(PAD).sum())
    assert TargetCount(torch.full((2, 2), PAD), PAD).value() == 0


def test_asked_for_later_it_reads_nothing() -> None:
    count = TargetCount(some_target(), PAD)
    with Waits() as waits:
        count.value()
    assert waits.found == []


def test_it_is_of_one_target_as_it_was() -> None:
    target = some_target()
    count = TargetCount(target, PAD)
    assert count.is_of(target, PAD)
    assert not count.is_of(target, PAD + 1)
    assert not count.is_of(target.clone(), PAD), "another tensor may be another target"
    target[0] = PAD
    assert not count.is_of(target, PAD)
    with torch.inference_mode():
        target = some_target()
        assert TargetCount(target, PAD).is_of(target, PAD)


def test_what_moves_the_arguments_of_a_model_leaves_it_alone() -> None:
    """DistributedDataParallel and FullyShardedDataParallel use this."""
    target = some_target()
    count = TargetCount(target, PAD)
    _, (moved,) = _to_kwargs((), {"target": target, "count": count}, torch.device("cpu"), False)
    assert moved["count"] is count and count.is_of(moved["target"], PAD)


@given(st.lists(st.booleans(), max_size=40))
def test_kept_positions_are_those_of_nonzero(keep: list[bool]) -> None:
    mask = torch.tensor(keep, dtype=torch.bool)
    expected = mask.nonzero().squeeze(1)
    assert torch.equal(kept_positions(mask, len(expected)), expected)
    with mock.patch.object(torch, "nonzero_static", side_effect=NotImplementedError):
        assert torch.equal(kept_positions(mask, len(expected)), expected)


def test_kept_positions_need_no_wait() -> None:
    mask = some_target().flatten().ne(PAD)
    with Waits() as waits:
        kept_positions(mask, 3)
        with mock.patch.object(torch, "nonzero_static", side_effect=NotImplementedError):
            kept_positions(mask, 3)
    assert waits.found == []


class FakeEvent:
    def __init__(self, said: list[str]) -> None:
        self.said = said

    def record(self, stream: str) -> None:
        self.said.append(f"record {stream}")

    def synchronize(self) -> None:
        self.said.append("synchronize")


class OnAccelerator(torch.Tensor):
    """On the CPU, and says otherwise."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 1)


def test_an_accelerator_is_not_waited_for_until_the_number_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: FakeEvent(said))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    made = torch.empty

    def empty(*size: Any, pin_memory: bool, **options: Any) -> Tensor:
        said.append(f"{options['device']}, pinned: {pin_memory}")
        return made(*size, **options)

    monkeypatch.setattr(torch, "empty", empty)
    target = some_target()
    pretended = target.as_subclass(OnAccelerator)
    with Waits() as waits:
        count = TargetCount(pretended, PAD)
    assert said == ["cpu, pinned: True", "record stream of cuda:1"] and waits.found == []
    assert count.is_of(pretended, PAD)
    assert count.value() == int(target.ne(PAD).sum())
    assert said[2:] == ["synchronize"]
