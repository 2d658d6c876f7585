"""What `mhe plan` says of GPUs, from the command line and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mhe_fairseq.cli.main import main
from mhe_fairseq.cli.plan_gpu import GPUS, Machine
from mhe_fairseq.cli.plan_passes import Pass
from mhe_fairseq.heads.kernels.step_counts import search_launches, training_launches
from tests.cli.test_plan import plan, write_dictionary

SLOW_HOST = ["--launch-us", "30"]


def costs(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {head["head"]: head["gpu"] for head in answer["heads"]}


def test_times_by_hand() -> None:
    machine = Machine("custom", bandwidth=1000.0, tflops=100.0, launch_us=5.0, reached=0.5)
    # 500 GB/s and 50 TFLOP/s are reached: 3 MB take 6 us, 10^8 multiply-adds 4 us; the longer of both counts.
    assert machine.device_ms([Pass(2e6, 1e6, 1e8)]) == pytest.approx(0.006)
    assert machine.device_ms([Pass(2e6, 1e6, 1e9), Pass(2e6, 1e6)]) == pytest.approx(0.046)
    assert machine.host_ms(36) == pytest.approx(0.18)


def test_json_has_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 32764)
    answer = plan(capsys, "--dict", path, "--dim", "512", "--gpu", "a100", "--sentences", "10")
    gpu, heads = answer["gpu"], costs(answer)
    assert gpu["machine"] == {
        "name": "a100", "bandwidth": 2039, "tflops": 312, "launch_us": 10, "reached": 0.7,
    }  # fmt: skip
    assert gpu["hypotheses"] == 50
    logits = 4096 * 32768
    softmax, cascade = heads["softmax"], heads["cascade"]
    features, table = 4096 * 512, 32768 * 512
    assert softmax["peak_half"] == softmax["peak_fp32"] == 12 * logits
    # Eight passes over the logits: each is written or read as often as fairseq's loss does it.
    assert softmax["train_bytes_fp32"] == 4 * (3 * features + 3 * table) + 4 * logits * (
        1 + 2 + 1 + 1 + 2 + 3 + 2
    )
    assert softmax["train_launches"] == training_launches("softmax")
    assert cascade["train_launches"] == training_launches("cascade")
    assert cascade["search_launches"] == search_launches("cascade")
    assert cascade["train_ms"] == pytest.approx(training_launches("cascade") / 100)
    assert cascade["train_bytes_fp32"] == pytest.approx(2 * cascade["train_bytes_half"], rel=1e-6)
    assert heads["cascade, tied"] == cascade
    assert answer["recommended"] == gpu["recommended"] == "cascade"
    flags = ["--gpu", "a100", "--sentences", "10", "--group-prototypes", "4"]
    rich = plan(capsys, "--dict", path, "--dim", "512", *flags)
    assert rich["group_prototypes"] == 4 and answer["group_prototypes"] == 1
    assert costs(rich)["cascade"]["train_launches"] == cascade["train_launches"]
    assert costs(rich)["cascade"]["search_launches"] == search_launches("cascade", prototypes=4)
    # Rows, logits and their gradients of 3 x 128 rows more: rows are read twice, their gradient written once.
    rows, more = 3 * 128 * 512, 4096 * 3 * 128
    assert costs(rich)["cascade"]["train_bytes_fp32"] - cascade["train_bytes_fp32"] == 4 * (
        3 * rows + 7 * more
    )
    assert costs(rich)["softmax"] == softmax
    deep = plan(capsys, "--dict", path, "--dim", "512", "--lengths", "32,32,32")
    assert (
        costs(deep)["cascade"]["train_launches"]
        == training_launches("cascade", 3)
        > cascade["train_launches"]
    )


def test_a_small_batch_is_made_of_launches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 16380)
    small = ["--batch-tokens", "256", "--sentences", "1"]
    answer = plan(capsys, "--dict", path, "--dim", "512", *small)
    gpu, heads = answer["gpu"], costs(answer)
    assert heads["softmax"]["train_ms"] <= heads["cascade"]["train_ms"]
    # A CPU has no launches.
    assert answer["recommended"] == "cascade" and gpu["recommended"] == "softmax"
    assert f"its {training_launches('cascade')} launches" in gpu["reason"]
    assert "Memory is what a cascade saves: " in gpu["reason"]
    assert gpu["faster_in_training"] > 16384
    large = plan(capsys, "--dict", path, "--dim", "512")["gpu"]
    assert large["recommended"] == "cascade" and large["faster_in_training"] < 16384
    assert "of an update are saved" in large["reason"]


@pytest.mark.slow
def test_faster_from_where_the_steps_cross(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 996)
    gpu = plan(capsys, "--dict", path, "--dim", "64", *SLOW_HOST)["gpu"]
    for found, step in ((gpu["faster_in_training"], "train_ms"), (gpu["faster_in_search"], "search_ms")):
        for factor, is_faster in ((1.05, True), (0.9, False)):
            near = write_dictionary(tmp_path / "near.txt", round(found * factor) - 4)
            heads = costs(plan(capsys, "--dict", near, "--dim", "64", *SLOW_HOST))
            assert (heads["cascade"][step] < heads["softmax"][step]) is is_faster, (found, step, factor)
    assert f"{round(gpu['faster_in_training'], 2 - len(str(gpu['faster_in_training']))):,}" in gpu["reason"]
    fast = plan(capsys, "--dict", path, "--dim", "64", "--launch-us", "3")["gpu"]
    assert fast["faster_in_training"] < gpu["faster_in_training"]


def test_a_host_so_slow_that_nothing_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 9996)
    gpu = plan(capsys, "--dict", path, "--dim", "8", "--launch-us", "1e9")["gpu"]
    assert gpu["faster_in_training"] is None and gpu["recommended"] == "softmax"
    assert "no gain in speed in training at any V up to 16.8 million" in gpu["reason"]


def test_rates_of_another_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 32764)
    given: list[str | Path] = ["--dict", path, "--dim", "512"]
    twice = plan(capsys, *given, "--bandwidth", "6700", "--tflops", "1978")
    assert twice["gpu"]["machine"]["name"] == "custom"
    once = plan(capsys, *given)
    assert costs(once)["softmax"]["train_ms"] == pytest.approx(2 * costs(twice)["softmax"]["train_ms"])
    one = plan(capsys, *given, "--gpu", "l4", "--tflops", "200")["gpu"]["machine"]
    assert (one["bandwidth"], one["tflops"]) == (GPUS["l4"][0], 200)


def test_advice_for_one_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 16380)
    given = ["plan", "--dict", str(path), "--dim", "512", "--batch-tokens", "256"]
    printed = {}
    for device in ([], ["--device", "cpu"], ["--device", "cuda"]):
        assert main([*given, *device]) == 0
        printed["".join(device[1:])] = " ".join(capsys.readouterr().out.split())
    assert "* Recommended: cascade." in printed[""] and "On a GPU: softmax." in printed[""]
    assert "GPU" not in printed["cpu"] and "* Recommended: cascade." in printed["cpu"]
    assert "* Recommended: softmax. Calculated for 256 tokens" in printed["cuda"]
    assert "On a GPU, calculated" in printed["cuda"] and "softmax *" in printed["cuda"]
    assert main([*given[:-1], "8192", "--device", "cuda"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "* Recommended: cascade. Calculated for 8,192 tokens" in out and "mhe assign --data" in out
    cpu = plan(capsys, "--dict", path, "--dim", "512", "--device", "cpu")
    assert "gpu" not in cpu and not any("gpu" in head for head in cpu["heads"])


def test_a_small_vocabulary_stays_with_the_softmax(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 2996)
    answer = plan(capsys, "--dict", path, "--dim", "512", "--batch-tokens", "65536")
    # Even where a cascade's step is the faster one: what is saved is a small part.
    assert costs(answer)["cascade"]["train_ms"] < costs(answer)["softmax"]["train_ms"]
    assert answer["gpu"]["recommended"] == "softmax"
