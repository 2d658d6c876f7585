"""`mhe plan` for real, and its arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mhe_fairseq.cli.main import main
from mhe_fairseq.cli.plan_heads import plan_heads
from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import ProductHead, SoftmaxHead
from mhe_fairseq.heads.cascade.head import CascadeHead
from mhe_fairseq.heads.sampling.head import SamplingHead
from tests.helpers import run_command

MHE = ["python", "-m", "mhe_fairseq.cli.main"]


def write_dictionary(path: Path, symbols: int, counts: str = "zipf") -> Path:
    """``symbols`` words beside the 4 special ones."""
    with path.open("w") as lines:
        for i in range(symbols):
            lines.write(f"w{i} {10**8 // (i + 1) if counts == 'zipf' else 1}\n")
    return path


def plan(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main(["plan", "--json", *map(str, arguments)]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def rows_of(table: str) -> dict[str, list[str]]:
    """Cells by the first of each row."""
    cells = [line.split("│")[1:-1] for line in table.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def test_the_table(tmp_path: Path) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 32764)
    done = run_command([*MHE, "plan", "--dict", path, "--dim", "512"])
    counts, gpu = done.stdout.split("On a GPU, calculated, not measured: h100")
    assert max(map(len, done.stdout.splitlines())) <= 120
    rows, of_gpu = rows_of(counts), rows_of(gpu)
    assert list(rows) == list(of_gpu)
    assert list(rows) == [
        "softmax", "product", "mixture of 8", "cascade *", "cascade, tied", "sampling of 16",
        "predicted of 16",
    ]  # fmt: skip
    assert rows["softmax"] == [
        "-", "-", "16.8M", "50.3M", "131k", "16.8M", "131k", "-",
    ]  # fmt: skip
    assert rows["product"][:4] == ["128 x 256", "0", "197k", "590k"]
    assert rows["cascade *"][-1].endswith(" of 128")
    assert of_gpu["softmax"] == [
        "7.36G", "6.67G", "1.61G", "1.61G", "24", "3.34", "516M", "550M", "14", "0.22",
    ]  # fmt: skip
    assert of_gpu["cascade *"][4:6] == ["36", "0.36"]
    assert "32,768 tokens, d = 512" in done.stdout
    assert "* Recommended: cascade." in done.stdout
    assert "mhe assign --data" in done.stdout.replace("\n", " ")


def test_json_says_the_same_to_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 32764)
    answer = plan(capsys, "--dict", path, "--dim", "512", "--batch-tokens", "100", "--beam", "4")
    assert answer["vocab_size"] == 32768 and answer["dim"] == 512
    assert answer["batch_tokens"] == 100 and answer["beam"] == 4
    assert answer["recommended"] == "cascade" and "learned codebook" in answer["reason"]
    heads = {head["head"]: head for head in answer["heads"]}
    assert heads["product"]["lengths"] == [128, 256]
    assert heads["product"]["train_macs"] == 3 * 384 * 512
    assert heads["softmax"]["train_macs"] == 3 * 32768 * 512
    assert heads["cascade"]["train_macs"] == 3 * (128 + 3 * 256) * 512
    assert heads["cascade"]["search_macs"] == (128 + 8 * 256) * 512
    assert heads["sampling of 16"]["train_macs"] == 3 * 17 * 256 * 512
    assert heads["sampling of 16"]["search_macs"] == heads["softmax"]["search_macs"]
    assert heads["predicted of 16"]["train_macs"] == (3 * 17 * 256 + 2 * 128) * 512
    # A batch of few tokens touches few groups; what is sampled is touched too.
    assert 20 < heads["cascade"]["touched_groups"] < 60
    assert heads["cascade"]["touched_groups"] < heads["sampling of 16"]["touched_groups"]
    assert "--mhe-head cascade --mhe-lengths 128,256" in heads["cascade"]["options"]


def test_a_small_vocabulary_is_left_to_the_softmax(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 2996)
    answer = plan(capsys, "--dict", path, "--dim", "256")
    assert answer["recommended"] == "softmax" and "3,000 tokens are few" in answer["reason"]
    small_text = tmp_path / "small.txt"
    small_text.write_text("".join(f"w{i} {1 + i % 3}\n" for i in range(8000)))
    answer = plan(capsys, "--dict", small_text, "--dim", "256")
    assert answer["recommended"] == "cascade" and "the text is small" in answer["reason"]


def test_parameters_are_those_of_the_heads() -> None:
    lengths, dim = (5, 7), 12
    plans = {p.head: p for p in plan_heads(torch.ones(33), lengths, dim, 10, 5)}
    book = Codebook(lengths, vocab_size=33)
    assert plans["softmax"].parameters == SoftmaxHead(dim, book).output_parameters()
    assert plans["product"].parameters == ProductHead(dim, book).output_parameters()
    assert plans["mixture of 8"].parameters == ProductHead(dim, book, mixtures=8).output_parameters()
    assert plans["cascade"].parameters == CascadeHead(dim, book).output_parameters()
    tied = CascadeHead(dim, book, tied=torch.nn.Embedding(33, dim))
    assert plans["cascade, tied"].parameters == tied.output_parameters()
    sampling = SamplingHead(dim, book, groups=4)
    assert plans["sampling of 4"].parameters == sampling.output_parameters()
    predicted = SamplingHead(dim, book, variant="predicted")
    assert plans[f"predicted of {predicted.groups}"].parameters == predicted.output_parameters()
    assert plans["product"].holes == 2
    three = {p.head: p for p in plan_heads(torch.ones(33), (3, 3, 4), dim, 10, 5)}
    book = Codebook((3, 3, 4), vocab_size=33)
    assert three["cascade"].parameters == CascadeHead(dim, book).output_parameters()


@pytest.mark.parametrize("lengths", [(5, 7), (3, 3, 4)])
def test_prototypes_of_groups(lengths: tuple[int, ...]) -> None:
    dim, book = 12, Codebook(lengths, vocab_size=33)
    one, four = (
        {p.head: p for p in plan_heads(torch.ones(33), lengths, dim, 10, 5, prototypes=m)} for m in (1, 4)
    )
    added = 3 * lengths[0]
    for name in ("cascade", "cascade, tied"):
        assert four[name].parameters - one[name].parameters == added * (dim + 1)
        assert four[name].train_macs - one[name].train_macs == 3 * added * dim
        assert four[name].search_macs - one[name].search_macs == added * dim
        assert four[name].train_bytes - one[name].train_bytes == 4 * added
        assert four[name].search_bytes - one[name].search_bytes == 4 * added
        assert "--mhe-group-prototypes 4" in four[name].options
    assert four["cascade"].parameters == CascadeHead(dim, book, group_prototypes=4).output_parameters()
    assert all(four[name] == one[name] for name in one if not name.startswith("cascade"))


def test_touched_groups_by_hand() -> None:
    counts = torch.tensor([4.0, 4.0, 1.0, 1.0])  # groups with 0.8 and 0.2 of the text
    cascade = {p.head: p for p in plan_heads(counts, (2, 2), 3, 2, 5)}["cascade"]
    assert cascade.groups == 2
    assert cascade.touched_groups == round((1 - 0.2**2) + (1 - 0.8**2), 1)


def test_three_lengths_and_tiny_vocabularies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dictionary(tmp_path / "dict.txt", 996)
    answer = plan(capsys, "--dict", path, "--dim", "8", "--lengths", "10,10,11")
    heads = {head["head"]: head for head in answer["heads"]}
    assert heads["product"]["parameters"] == 31 * 9 and heads["product"]["holes"] == 100
    assert heads["cascade"]["groups"] == 100
    tiny = write_dictionary(tmp_path / "tiny.txt", 1)
    assert plan(capsys, "--dict", tiny, "--dim", "1")["vocab_size"] == 5
    # One group: nothing to sample.
    names = [h["head"] for h in plan(capsys, "--dict", tiny, "--dim", "1", "--lengths", "1,9")["heads"]]
    assert names == ["softmax", "product", "mixture of 8", "cascade", "cascade, tied"]


def test_where_frequencies_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counted = write_dictionary(tmp_path / "counted.txt", 500)
    plain = write_dictionary(tmp_path / "plain.txt", 500, counts="none")
    assert plan(capsys, "--dict", counted, "--dim", "8")["frequencies"] == str(counted)
    assert plan(capsys, "--dict", plain, "--dim", "8")["frequencies"] == "Zipf's law"
    assert plan(capsys, "--dict", counted, "--dim", "8", "--counts")["frequencies"] == str(counted)
    given = plan(capsys, "--dict", plain, "--dim", "8", "--counts", counted)
    assert given["frequencies"] == str(counted)
    own = plan(capsys, "--dict", counted, "--dim", "8")
    assert given["heads"][3]["touched_groups"] == pytest.approx(own["heads"][3]["touched_groups"], abs=0.2)


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("a 1\nb 2\n", ["--dim", "0"], "--dim must be at least 1, got 0"),
        ("a 1\nb 2\n", ["--dim", "-4"], "--dim must be at least 1, got -4"),
        ("a 1\nb 2\n", ["--batch-tokens", "0"], "--batch-tokens must be at least 1, got 0"),
        ("a 1\nb 2\n", ["--beam", "0"], "--beam must be at least 1, got 0"),
        ("a 1\nb 2\n", ["--sentences", "0"], "--sentences must be at least 1, got 0"),
        ("a 1\nb 2\n", ["--group-prototypes", "0"], "--group-prototypes must be 1..64, got 0"),
        ("a 1\nb 2\n", ["--group-prototypes", "65"], "--group-prototypes must be 1..64, got 65"),
        (
            "a 1\nb 2\n",
            ["--gpu", "h1000"],
            "--gpu h1000 is none of a10, a100, l4, h100, h200; for another give",
        ),
        ("a 1\nb 2\n", ["--bandwidth", "0"], "--bandwidth must be above 0, got 0"),
        ("a 1\nb 2\n", ["--tflops", "-3"], "--tflops must be above 0, got -3"),
        ("a 1\nb 2\n", ["--launch-us", "nan"], "--launch-us must be above 0, got nan"),
        ("a 1\nb 2\n", ["--launch-us", "inf"], "--launch-us must be above 0 and finite, got inf"),
        ("a 1\nb 2\n", ["--lengths", "2,2"], "give 4 slots for 6 tokens"),
        ("a 1\nb 2\n", ["--lengths", "6"], "two or three lengths, such as 2,3; got 6"),
        ("a 1\nb 2\n", ["--lengths", "2,2,2,2"], "two or three lengths, such as 2,3; got 2,2,2,2"),
        ("a 1\nb 2\n", ["--lengths", "2;3"], "lengths must be whole numbers"),
        ("a 1\nb 2\n", ["--lengths", "2.7,3"], "lengths must be whole numbers"),
        ("a 1\nb\n", [], "every line must be `symbol count`: Incorrect dictionary format"),
        ("a 1\nb two\n", [], "every line must be `symbol count`: Incorrect dictionary format"),
        ("a 1\na 2\n", [], "Duplicate word"),
        ("", [], "has no symbols"),
        ("a 1\nb -2\n", [], "counts 'b' -2 times; a count is 0 or more"),
        ("a 7\nb 7\n", ["--counts"], "has none: all its counts are 7"),
        ("a 1\nb 2\n", ["--counts", "nowhere"], "there is no counts file nowhere"),
    ],
)
def test_bad_input(
    content: str, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dict.txt"
    path.write_text(content)
    assert main(["plan", "--dict", str(path), "--dim", "8", *more]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("mhe: ") and printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1\n", "1 symbols against 2, 0 of them unknown and 1 missing; 'b' has no count"),
        ("a 1\nb 2\nc 3\n", "3 symbols against 2, 1 of them unknown and 0 missing; 'c' is not in the"),
        ("a 1\nb x\n", "line 2 of the counts file"),
        ("a 1\nb -2\n", "line 2 of the counts file"),
        ("a 1\n\nb 2\n", "line 2 of the counts file"),
        ("a 1\na 1\nb 2\n", "has 'a' twice (again in line 2)"),
        ("a 0\nb 0\n", "are 0; they must come from a text"),
    ],
)
def test_counts_that_do_not_match(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dictionary, counts = tmp_path / "dict.txt", tmp_path / "counts.txt"
    dictionary.write_text("a 1\nb 2\n")
    counts.write_text(content)
    assert main(["plan", "--dict", str(dictionary), "--dim", "8", "--counts", str(counts)]) == 1
    assert message in capsys.readouterr().err
