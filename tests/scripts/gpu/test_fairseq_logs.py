"""Reading of fairseq's logs, on lines that fairseq wrote."""

from __future__ import annotations

import dataclasses
import math

import pytest

from scripts.gpu.fairseq_logs import Trained, apart, records, trained, translated, unlike

#: Of ``fairseq-train --log-format json --log-interval 5``, shortened.
TRAINING = """
2026-11-28 08:14:14 | INFO | fairseq.utils | ***********************CUDA enviroments for all 1 workers***********************
2026-11-28 08:14:14 | INFO | fairseq.utils | rank   0: capabilities =  9.0  ; total memory = 79.109 GB ; name = NVIDIA H100
2026-11-28 08:14:15 | INFO | mhe_fairseq.heads.kernels.dispatch | mhe: the output layer runs in kernels, triton 3.6.0
2026-11-28 08:14:16 | INFO | train_inner | {"epoch": 1, "update": 0.07, "loss": "16.2", "nll_loss": "16.1", "ppl": "72000", "wps": "120.5", "ups": "0.02", "wpb": "7712", "bsz": "312", "num_updates": "5", "lr": "6.25e-07", "gnorm": "6.1", "loss_scale": "128", "train_wall": "9", "gb_free": "40.1", "wall": "10"}
2026-11-28 08:14:18 | INFO | train_inner | {"epoch": 1, "update": 0.14, "loss": "16.1", "nll_loss": "16.0", "ppl": "65536", "wps": "28788.5", "ups": "3.7", "wpb": "7780", "bsz": "320", "num_updates": "10", "lr": "1.25e-06", "gnorm": "5.9", "loss_scale": "128", "train_wall": "1", "gb_free": "50.8", "wall": "12"}
2026-11-28 08:14:18 | INFO | mhe_fairseq.heads.kernels.dispatch | mhe: the output layer runs in kernels, triton 3.6.0
2026-11-28 08:14:20 | INFO | train_inner | {"epoch": 1, "update": 0.21, "loss": "15.9", "nll_loss": "15.8", "ppl": "57052", "wps": "30788.5", "ups": "3.9", "wpb": "7780", "bsz": "320", "num_updates": "15", "lr": "1.9e-06", "gnorm": "5.8", "loss_scale": "128", "train_wall": "1", "gb_free": "49.7", "wall": "13"}
2026-11-28 08:14:20 | INFO | train | {"epoch": 1, "train_loss": "16.1", "train_wps": "5000", "train_num_updates": "15"}
"""  # noqa: E501

GENERATED = """
2026-11-28 08:14:14 | INFO | mhe_fairseq.search.generator | mhe: compact search
S-1\tw3 w9
T-1\tw5 w6
H-1\t-3.25\tw7 w8
D-1\t-3.25\tw7 w8
P-1\t-3.0 -3.0 -3.75
H-0\t-2.5\tw7 w1
2026-11-28 08:14:14 | INFO | fairseq_cli.generate | Translated 1,024 sentences (26,624 tokens) in 13.8s (74.20 sentences/s, 1930.50 tokens/s)
"""  # noqa: E501


def test_speed_and_memory_are_of_what_follows_the_warm_up() -> None:
    seen = trained(TRAINING, 5)
    assert seen.words_per_second == pytest.approx((28788.5 + 30788.5) / 2)
    assert seen.updates_per_second == pytest.approx(3.8)
    assert seen.peak_gib == pytest.approx(79.109 - 49.7)
    assert seen.losses == [16.2, 16.1, 15.9] and seen.norms == [6.1, 5.9, 5.8] and seen.is_finite
    assert seen.said == ["the output layer runs in kernels, triton 3.6.0"]
    assert trained(TRAINING, 15).words_per_second is None


def test_a_log_of_the_cpu_tells_no_memory() -> None:
    assert trained(TRAINING.replace("total memory", "no memory"), 5).peak_gib is None


def test_losses_that_are_no_numbers() -> None:
    assert not trained(TRAINING.replace('"loss": "16.1"', '"loss": "nan"'), 0).is_finite
    assert not trained(TRAINING.replace('"loss": "16.1", ', ""), 0).is_finite
    assert not trained("nothing", 0).is_finite


def test_lines_of_another_kind_and_broken_ones_are_left_out() -> None:
    assert len(records(TRAINING)) == 3 and len(records(TRAINING, "train")) == 1
    assert len(records(TRAINING.replace('"gnorm": "5.9"', '"gnorm": 5.9", '))) == 2


def test_translations() -> None:
    seen = translated(GENERATED)
    assert seen is not None
    assert seen.hypotheses == {0: (-2.5, "w7 w1"), 1: (-3.25, "w7 w8")}
    assert seen.tokens == 26624 and seen.tokens_per_second == 1930.5 and seen.said == ["compact search"]
    assert translated(GENERATED.replace("Translated", "Began")) is None


def test_unlike_trainings() -> None:
    one = trained(TRAINING, 0)
    assert apart(one, one) == (0.0, 0.0) and unlike(one, one, 0.0, 0.0) == ""
    other = dataclasses.replace(one, losses=[16.2, 16.1, 15.8], norms=[6.1, 5.9, 5.0])
    assert apart(one, other) == pytest.approx((0.1, 0.16))
    assert unlike(one, other, 0.2, 0.2) == ""
    assert unlike(one, other, 0.05, 0.2).startswith("losses [16.2, 16.1, 15.9] and")
    assert unlike(one, other, 0.2, 0.1).startswith("norms of gradients")
    nothing = dataclasses.replace(one, losses=[16.2, 16.1, math.nan])
    assert unlike(one, nothing, 9.0, 9.0).startswith("losses")
    shorter = dataclasses.replace(one, losses=[16.2], norms=[6.1])
    assert unlike(one, shorter, 9.0, 9.0) == "3 lines of the log, and 1"
    none = Trained([], [], None, None, None, [])
    assert unlike(none, none, 9.0, 9.0) == "0 lines of the log, and 0"
