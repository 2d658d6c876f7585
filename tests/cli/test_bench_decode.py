"""`mhe bench decode` for real, with a tiny transformer. Times are never judged."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from mhe_fairseq.bench.decode import HEADS
from mhe_fairseq.cli.main import main
from tests.helpers import run_command
from tests.pretend_cuda import pretend_cuda


@pytest.mark.slow
def test_the_whole_run(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = ["python", "-m", "mhe_fairseq.cli.main", "bench", "decode", "--quick", "--seed", "5"]
    done = run_command([*command, "--json", path])
    assert "seed 5" in done.stdout and "V = 128" in done.stdout and "V = 256" in done.stdout
    for label in HEADS.values():
        assert done.stdout.count(f"│ {label} ") == 2
    answer = json.loads(path.read_text())
    assert (answer["benchmark"], answer["seed"], answer["beam"], answer["layers"]) == ("decode", 5, 2, 1)
    assert [(row["vocab_size"], row["head"]) for row in answer["heads"]] == [
        (vocab, head) for vocab in (128, 256) for head in HEADS
    ]
    for rows in (answer["heads"][:6], answer["heads"][6:]):
        seconds = {row["head"]: sum(row["seconds"]) / 2 for row in rows}
        for row in rows:
            # 6 sentences of 4 tokens and EOS; two rounds, whose median is their mean.
            assert row["tokens"] == 30 and len(row["seconds"]) == 2
            assert row["tokens_per_second"] == pytest.approx(30 / seconds[row["head"]])
            assert row["ratio"] == pytest.approx(seconds["softmax"] / seconds[row["head"]])
            assert row["of_limit"] == pytest.approx(seconds["none"] / seconds[row["head"]])


@pytest.mark.slow
def test_without_softmax_there_is_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--repeats", "1", "--vocab", "64", "--heads", "product", "--json", "-"]
    assert main(["bench", "decode", *arguments]) == 0
    (row,) = json.loads(capsys.readouterr().out)["heads"]
    assert row["ratio"] is None and row["of_limit"] is None


def test_times_of_the_processor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the processor's clock finds it a second later, and no one looks at another."""
    seconds = itertools.count(1.0)
    monkeypatch.setattr("time.process_time", lambda: next(seconds))
    arguments = ["--quick", "--repeats", "1", "--vocab", "64", "--heads", "none", "--json", "-"]
    assert main(["bench", "decode", *arguments, "--cpu-time", "--threads", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["cpu_time"] and answer["heads"][0]["seconds"] == [1.0]


@pytest.mark.slow
def test_prototypes_of_groups(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--repeats", "1", "--vocab", "64", "--heads", "cascade", "--json", "-"]
    assert main(["bench", "decode", *arguments, "--group-prototypes", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["group_prototypes"] == 3 and answer["heads"][0]["tokens"] == 30


@pytest.mark.slow
def test_nothing_of_a_search_is_left_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--vocab", "64", "--sentences", "2", "--length", "2", "--repeats", "1"]
    with pretend_cuda():
        assert main(["bench", "decode", "--quick", *sizes, "--device", "cuda", "--json", "-"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["device"], answer["machine"]["gpu"]) == ("cuda", "a pretended GPU")
    assert [(row["head"], row["tokens"]) for row in answer["heads"]] == [(head, 2 * 3) for head in HEADS]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--vocab", "ten"], "--vocab must be whole numbers separated by commas, got 'ten'"),
        (["--vocab", "0"], "every vocabulary must be at least 1, got 0"),
        (["--vocab", "16"], "a vocabulary of 16 tokens is too small to search with beam 5"),
        (["--beam", "0"], "--beam must be at least 1, got 0"),
        (["--group-prototypes", "65"], "--group-prototypes must be 1..64, got 65"),
        (["--layers", "-1"], "--layers must be at least 1, got -1"),
        (["--dim", "100"], "--dim 100 is not a multiple of 64"),
        (["--heads", "product,tree"], "no head 'tree' to measure; there are softmax, product"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--json", "no/such/folder/x"], "there is no directory no/such/folder"),
    ],
)
def test_bad_input(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("mhe: ") and error.count("\n") == 1
