"""What is derived from the measured times."""

from __future__ import annotations

import statistics

import pytest
import torch

from mhe_fairseq.bench import bars
from mhe_fairseq.bench.train import (
    Settings,
    check_growth_memory,
    check_shape_memory,
    measure_growth,
    measure_shape,
)
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError

SETTINGS = Settings(dim=8, tokens=16, smoothing=True, seed=3, device=torch.device("cpu"))


def test_ratios_are_quotients_of_medians() -> None:
    state = torch.get_rng_state()
    told: list[tuple[str, int, int]] = []
    result = measure_shape(
        Codebook((10, 12)), ["cascade", "softmax"], 3, SETTINGS, lambda *each: told.append(each)
    )
    assert torch.equal(torch.get_rng_state(), state)
    softmax, cascade = result.heads
    assert (softmax.head, cascade.head) == ("softmax", "cascade")
    times = [statistics.median(head.samples.seconds) for head in result.heads]
    assert cascade.ratio == times[0] / times[1] and softmax.ratio == 1.0
    rounds = [a / b for a, b in zip(softmax.samples.seconds, cascade.samples.seconds, strict=True)]
    assert cascade.ratio_range == (min(rounds), max(rounds)) and len(rounds) == 3
    assert cascade.memory_share == cascade.memory.extra / softmax.memory.extra
    assert told[0] == told[1] == ("V = 120", 0, 3) and told[-1] == ("V = 120", 3, 3)


@pytest.mark.slow
def test_growth() -> None:
    product, cascade = measure_growth([512, 64, 128], ["product", "cascade"], 2, SETTINGS)
    for result in (product, cascade):
        assert result.vocabs == [64, 128, 512]
        assert len(result.steps) == len(result.optimizer) == 3
        assert all(each.median > 0 for each in [*result.steps, *result.optimizer])
        assert result.bar is None


def test_bars_are_for_their_shapes_only() -> None:
    assert bars.ratio_bar(32768, 512, 2048, "product") == 60
    assert bars.ratio_bar(262144, 512, 2048, "cascade") == 40
    assert bars.ratio_bar(262144, 512, 2048, "sampling") is None
    assert bars.ratio_bar(32768, 256, 2048, "product") is None
    assert bars.memory_bar(32768, 512, 2048, "cascade-tied") == 0.1
    assert bars.memory_bar(32768, 512, 2048, "softmax") is None
    assert bars.memory_bar(32768, 512, 1024, "product") is None
    assert bars.exponent_bar([8192, 1048576], 512, 2048) == 0.6
    assert bars.exponent_bar([16384, 1048576], 512, 2048) is None
    assert bars.exponent_bar([8192, 262144], 512, 2048) is None


def test_too_little_memory_is_said_before_the_work() -> None:
    with pytest.raises(MHEError, match=r"the dense softmax with V = 99,999,999,999 and N = 16 takes about"):
        check_shape_memory(99_999_999_999, ["product"], SETTINGS)
    with pytest.raises(MHEError, match=r"growth up to V = 99,999,999,999 takes about"):
        check_growth_memory([8, 99_999_999_999], ["cascade"], SETTINGS)
    check_growth_memory([8, 99_999_999_999], ["product"], SETTINGS)
