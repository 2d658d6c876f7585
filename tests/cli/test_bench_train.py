"""`mhe bench train` for real, on tiny shapes. Times are never judged."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mhe_fairseq.bench.steps import HEADS
from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook
from tests.helpers import run_command
from tests.pretend_cuda import pretend_cuda

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

MHE = ["python", "-m", "mhe_fairseq.cli.main"]
TINY = ["--quick", "--repeats", "1", "--vocab", "192", "--dim", "4", "--tokens", "8"]
ALONE = ["--large-vocab", "0", "--growth", "0"]


def bench(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main(["bench", "train", *TINY, "--json", "-", *map(str, arguments)]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_the_whole_run(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = run_command([*MHE, "bench", "train", "--quick", "--seed", "5", "--json", path])
    for text in ("seed 5", "Zipf's law", "label smoothing 0.1", "V = 512 (16 x 32", "Growth with V"):
        assert text in done.stdout
    for label in HEADS.values():
        assert f"│ {label} " in done.stdout
    assert "│ cascade: Adam alone " in done.stdout
    answer = json.loads(path.read_text())
    assert list(answer) == [
        "benchmark", "version", "seed", "machine", "device", "dtype", "dim", "tokens", "label_smoothing",
        "group_prototypes", "cpu_time", "targets", "shapes", "growth",
    ]  # fmt: skip
    assert (answer["benchmark"], answer["seed"], answer["dim"], answer["tokens"]) == ("train", 5, 16, 64)
    assert list(answer["machine"]) == ["cpu", "cores", "threads", "gpu", "torch", "python"]
    assert answer["machine"]["torch"] == torch.__version__
    small, large = answer["shapes"]
    assert (small["vocab_size"], large["vocab_size"]) == (512, 1024)
    assert small["rounds"] == 2 and small["lengths"] == [16, 32]
    assert [head["head"] for head in small["heads"]] == list(HEADS)
    assert [head["head"] for head in large["heads"]] == ["softmax", "product", "cascade"]
    for shape in answer["shapes"]:
        softmax = shape["heads"][0]
        for head in shape["heads"]:
            assert head["ratio"] == pytest.approx(softmax["milliseconds"] / head["milliseconds"])
            assert head["ratio_min"] <= head["ratio_max"] and len(head["round_milliseconds"]) == 2
            assert head["memory_share"] == head["memory_bytes"] / softmax["memory_bytes"] > 0
            assert head["ratio_bar"] is head["ratio_met"] is head["memory_bar"] is head["memory_met"] is None
    heads = {head["head"]: head for head in small["heads"]}
    assert heads["softmax"]["parameters"] == 512 * 16
    assert heads["product"]["parameters"] == 48 * 17
    assert heads["softmax"]["gradient_bytes"] == heads["sampling"]["gradient_bytes"] == 4 * 512 * 16
    assert heads["cascade-tied"]["parameters"] == 16 * 17
    assert heads["cascade-tied"]["gradient_bytes"] == 4 * (16 * 17 + 512 * 16)
    product, cascade = answer["growth"]
    assert (product["head"], cascade["head"]) == ("product", "cascade")
    for result in (product, cascade):
        assert result["vocab_sizes"] == [256, 1024, 4096]
        assert len(result["milliseconds"]) == len(result["optimizer_milliseconds"]) == 3
        assert result["exponent_bar"] is result["exponent_met"] is None


def test_some_heads_only(capsys: pytest.CaptureFixture[str]) -> None:
    answer = bench(capsys, "--heads", "sampling, product", "--large-vocab", "99", "--growth", "64,16")
    names = [[head["head"] for head in shape["heads"]] for shape in answer["shapes"]]
    assert names == [["softmax", "product", "sampling"], ["softmax", "product"]]
    assert [result["head"] for result in answer["growth"]] == ["product"]
    assert answer["growth"][0]["vocab_sizes"] == [16, 64]
    answer = bench(capsys, "--heads", "mixture", "--no-smoothing", "--threads", "1")
    assert len(answer["shapes"]) == 1 and answer["growth"] == []
    assert answer["label_smoothing"] == 0.0 and answer["machine"]["threads"] == 1


def test_memory_depends_on_the_seed_only(capsys: pytest.CaptureFixture[str]) -> None:
    def memory(*arguments: str) -> list[int]:
        heads = bench(capsys, *ALONE, *arguments)["shapes"][0]["heads"]
        return [head["memory_bytes"] for head in heads]

    assert memory("--seed", "2") == memory("--seed", "2")
    assert memory("--seed", "2", "--no-smoothing")[0] < memory("--seed", "2")[0]


def test_a_codebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Codebook((14, 16), torch.randperm(14 * 16)[:192])
    book.save(tmp_path / "codes")
    shape = bench(capsys, *ALONE, "--codebook", tmp_path / "codes")["shapes"][0]
    assert shape["lengths"] == [14, 16] and shape["codebook"] == book.fingerprint
    assert main(["bench", "train", *TINY, "--codebook", str(tmp_path / "codes"), "--vocab", "200"]) == 1
    assert "is for 192 tokens and --vocab is 200; give --vocab 192" in capsys.readouterr().err


def test_prototypes_of_groups(capsys: pytest.CaptureFixture[str]) -> None:
    answer = bench(capsys, *ALONE, "--heads", "cascade,product", "--group-prototypes", "3")
    assert answer["group_prototypes"] == 3
    lengths, heads = answer["shapes"][0]["lengths"], answer["shapes"][0]["heads"]
    assert {head["head"]: head["parameters"] for head in heads} == {
        "softmax": 192 * 4,
        "product": sum(lengths) * 5,
        "cascade": 3 * lengths[0] * 5 + lengths[0] * lengths[1] * 4,
    }
    assert main(["bench", "train", *TINY, *ALONE, "--heads", "cascade", "--group-prototypes", "3"]) == 0
    assert "Groups of cascades have 3 rows." in capsys.readouterr().out.replace("\n", " ")


def test_times_of_the_processor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the processor's clock finds it a second later, and no one looks at another."""
    seconds = itertools.count(1.0)
    monkeypatch.setattr("time.process_time", lambda: next(seconds))
    given = ["--heads", "product", "--cpu-time", "--threads", "1", "--growth", "16,32", "--large-vocab", "0"]
    answer = bench(capsys, *given)
    assert answer["cpu_time"]
    assert [head["milliseconds"] for head in answer["shapes"][0]["heads"]] == [1000.0, 1000.0]
    assert [growth["optimizer_milliseconds"] for growth in answer["growth"]] == [[1000.0, 1000.0]]


def test_bars_are_shown_where_they_are_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("DIM", 4),
        ("TOKENS", 8),
        ("VOCABULARIES", {192}),
        ("RATIOS", {(192, "product"): 1e-9, (192, "cascade"): 1e9}),
        ("MEMORY_SHARE", 1e9),
        ("EXPONENT_RANGE", (32, 64)),
        ("EXPONENT", -1e9),
    ):
        monkeypatch.setattr(f"mhe_fairseq.bench.bars.{name}", value)
    arguments = [*TINY, "--heads", "product,cascade", "--large-vocab", "0", "--growth", "32,64"]
    assert main(["bench", "train", *arguments]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert " 1e-09x met │" in rows[1] and " 1e+09 met │" in rows[1]
    assert " 1e+09x missed │" in rows[2]
    assert rows[3].rstrip(" │").endswith(" -1e+09 missed")
    heads = bench(capsys, *arguments)["shapes"][0]["heads"]
    assert [head["ratio_met"] for head in heads] == [None, True, False]
    assert [head["memory_met"] for head in heads] == [None, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab", "0"], "--vocab must be at least 1, got 0"),
        (["--dim", "-1"], "--dim must be at least 1, got -1"),
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--group-prototypes", "0"], "--group-prototypes must be 1..64, got 0"),
        (["--vocab", "many"], "invalid int value: 'many'"),
        (["--large-vocab", "-5"], "--large-vocab is a number of tokens, 0 to leave it out; got -5"),
        (["--heads", "product,quick"], "there is no head 'quick' to measure; there are softmax, product"),
        (["--heads", ""], "there is no head ''"),
        (["--growth", "8,x"], "--growth must be whole numbers separated by commas"),
        (["--growth", "8"], "at least two different vocabularies; --growth has 8"),
        (["--growth", "8,0"], "every vocabulary of --growth must be at least 1, got 0"),
        (["--codebook", "none"], "there is no codebook file none"),
        (["--vocab", "99999999999"], "give a smaller vocabulary"),
        (["--large-vocab", "99999999999"], "give a smaller vocabulary"),
        (["--growth", "8,99999999999"], "give a smaller vocabulary"),
        (["--json", "no/such/folder.json"], "there is no directory no/such"),
        (["--json", "."], "the output . is a directory"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (
            ["--cpu-time", "--threads", "2"],
            "--cpu-time adds up the processor time of all threads, and knows nothing of a GPU; give "
            "--threads 1 --device cpu, not --threads 2 --device cpu",
        ),
        (["--cpu-time", "--threads", "1", "--device", "cuda"], "not --threads 1 --device cuda"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *TINY, *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("mhe: ") and printed.err.count("\n") == 1
    assert message in printed.err


def test_a_head_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *TINY, *ALONE, "--vocab", "2"]) == 1
    assert "sampling, V = 2: " in capsys.readouterr().err


def test_a_benchmark_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 1
    assert "arguments are required: BENCHMARK (`mhe bench --help`" in capsys.readouterr().err


def test_nothing_of_a_step_is_left_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--vocab", "64", "--large-vocab", "0", "--growth", "64,128", "--device", "cuda"]
    with pretend_cuda():
        answer = bench(capsys, *sizes)
    assert (answer["device"], answer["machine"]["gpu"]) == ("cuda", "a pretended GPU")
    assert [head["head"] for head in answer["shapes"][0]["heads"]] == list(HEADS)
    assert [growth["head"] for growth in answer["growth"]] == ["product", "cascade"]
