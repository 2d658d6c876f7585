"""scripts/data/prepare_text.py: what it writes, what fairseq makes of it, what it refuses."""

from __future__ import annotations

import json
import lzma
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data import Dictionary, data_utils

from scripts.common import tokens
from scripts.common.files import PrepareError
from scripts.data import binarise
from scripts.data.prepare_text import main
from scripts.data.split_text import Split
from tests.helpers import REPO, command_env, resolve_command, run_command

SCRIPT = str(REPO / "scripts" / "data" / "prepare_text.py")
SPLITS = ("train", "valid", "test")


def write_text(path: Path, documents: int = 60, seed: int = 0) -> Path:
    """Documents of 5 to 15 lines of a language of 64 words, a blank line between them."""
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in "bdfgklmn" for b in ("a", "e", "i", "o", "u", "ü", "an", "el")]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    text = []
    for number in range(documents):
        for _ in range(rng.randint(5, 15)):
            line = " ".join(rng.choices(words, weights, k=rng.randint(3, 12)))
            text.append(f"Document {number}: {line}.")
        text.append("")
    path.write_text("\n".join(text[:-1]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt")


def arguments(text: Path, out: Path, *more: str) -> list[str]:
    return ["--text", str(text), "--out", str(out), "--workers", "1", *(more or ("--words", "64"))]


def content(folder: Path) -> dict[str, bytes]:
    # fairseq's log has the time in it.
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "preprocess.log"
    }


def binarised(out: Path) -> tuple[Dictionary, dict[str, list[list[str]]]]:
    """The dictionary, and the lines of each set as fairseq reads them."""
    known = Dictionary.load(str(out / "data-bin" / "dict.txt"))
    lines = {}
    for split in SPLITS:
        data = data_utils.load_indexed_dataset(str(out / "data-bin" / split), known)
        for item in data:
            assert item[-1] == known.eos()
        lines[split] = [[known[token] for token in item[:-1]] for item in data]
    return known, lines


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text above in words, in a folder ``out`` beside it."""
    folder = tmp_path_factory.mktemp("prepared")
    assert main(arguments(write_text(folder / "text.txt"), folder / "out")) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], out: Path, line: list[str], *said: str) -> None:
    """One sentence with ``said`` in it, exit 1, nothing left behind."""
    assert main(line) == 1
    error = capsys.readouterr().err
    assert error.startswith("prepare_text.py: error: ") and error.count("\n") == 1, error
    for part in said:
        assert part in error
    assert not out.exists()


def test_words(prepared: Path) -> None:
    known, lines = binarised(prepared / "out")
    assert len(known) == 64
    for split in SPLITS:
        text = (prepared / "out" / "text" / split).read_text().splitlines()
        assert [line.split() for line in text] == [
            [word if read == "<unk>" else read for word, read in zip(line.split(), row, strict=True)]
            for line, row in zip(text, lines[split], strict=True)
        ]
    assert [] in lines["train"]  # blank lines, which end documents
    # The most frequent words, in the order of frequency.
    counts = known.count[known.nspecial :]
    assert counts == sorted(counts, reverse=True) and counts[-1] > 0
    assert not list(prepared.rglob("*.tmp"))


def test_split_is_by_documents(prepared: Path) -> None:
    whole = (prepared / "text.txt").read_text().splitlines()
    parts = {split: (prepared / "out" / "text" / split).read_text().splitlines() for split in SPLITS}
    assert sorted(filter(None, whole)) == sorted(filter(None, sum(parts.values(), [])))
    documents = {split: {line.split(":")[0] for line in lines if line} for split, lines in parts.items()}
    assert not (documents["train"] & (documents["valid"] | documents["test"]))
    assert not (documents["valid"] & documents["test"])
    assert all(sum(map(bool, parts[split])) >= 20 for split in SPLITS)


@pytest.mark.parametrize("lines", [3, 4, 59, 60, 61, 1000, 4000])
def test_split_of_a_text_without_documents(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "text"
    path.write_text("".join(f"line {n}\n" for n in range(lines)))
    split = Split.of(path)
    parts = {name: [line for line in split.lines(name) if line] for name in SPLITS}
    assert sorted(sum(parts.values(), [])) == sorted(f"line {n}" for n in range(lines))
    assert len(parts["train"]) >= len(parts["valid"]) >= 1 and len(parts["test"]) >= 1
    if lines >= 1000:
        assert all(0.01 * lines < len(parts[name]) < 0.04 * lines for name in ("valid", "test"))
    # Nothing runs on over what another set has.
    for name in SPLITS:
        numbers = [int(line[5:]) if line else None for line in split.lines(name)]
        for before, after in zip(numbers, numbers[1:], strict=False):
            assert before is None or after is None or after == before + 1


def test_three_files_of_ones_own_in_pieces(tmp_path: Path) -> None:
    line = ["--out", str(tmp_path / "out"), "--pieces", "100", "--add-symbol", "<mask>", "--workers", "2"]
    for seed, split in enumerate(SPLITS):
        write_text(tmp_path / split, 20, seed)
        (tmp_path / f"{split}.xz").write_bytes(lzma.compress((tmp_path / split).read_bytes()))
        line += [f"--{split}", str(tmp_path / f"{split}.xz")]
    assert main(line) == 0
    known, lines = binarised(tmp_path / "out")
    # 4 of fairseq's, 95 pieces, <mask>, and 4 to reach a multiple of 8.
    assert len(known) == 104 and known.indices["<mask>"] == 99
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "spm.model"))
    for split in SPLITS:
        wanted = (tmp_path / split).read_text().splitlines()
        assert [pieces.decode(row) for row in lines[split]] == wanted


def write_gpt2(folder: Path, words: list[str]) -> Path:
    """Files as GPT-2's, with bytes and one merge for every pair at the beginning of ``words``."""
    from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

    folder.mkdir()
    merges = [(word[0], word[1]) for word in words]
    symbols = [*bytes_to_unicode().values(), *(first + second for first, second in merges)]
    (folder / "encoder.json").write_text(json.dumps({symbol: n for n, symbol in enumerate(symbols)}))
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges), ""]
    (folder / "vocab.bpe").write_text("\n".join(lines), encoding="utf-8")
    # In an order of its own, as the published one.
    (folder / "dict.txt").write_text("".join(f"{n} {n + 1}\n" for n in reversed(range(len(symbols)))))
    return folder


def test_gpt2_bpe(text: Path, tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path / "gpt2", ["Do", "cu", "me", "nt"])
    assert main(arguments(text, tmp_path / "out", "--gpt2-bpe", str(folder))) == 0
    known, lines = binarised(tmp_path / "out")
    assert len(known) == 264 and known[4] == "259"
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    encoder = get_encoder(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    for split in SPLITS:
        wanted = (tmp_path / "out" / "text" / split).read_text().splitlines()
        assert [encoder.decode(list(map(int, row))) for row in lines[split]] == wanted


def test_moses_in_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text('It\'s "quoted" & costs 3.14 <b>.\n\nSo it is.\n' * 40_000)
    one, two = (tokens.encoded(path, lambda: tokens.moses("en"), workers) for workers in (1, 2))
    for number, (left, right) in enumerate(zip(one, two, strict=True)):
        assert left == right
        if number == 0:
            assert left == b'It \'s " quoted " & costs 3.14 < b > .\n'
        if number > 500:
            break


def test_second_run_changes_nothing(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    text, out = tmp_path / "copy" / "text.txt", tmp_path / "copy" / "out"
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(arguments(text, out)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


@pytest.mark.parametrize("words", [9, 12, 16])
def test_rounding_up_may_be_what_is_asked_for(tmp_path: Path, words: int) -> None:
    """As WikiText-103, whose 267,733 words make 267,744: seven of a dictionary may be fairseq's filling."""
    (tmp_path / "tokens").write_text(" ".join(f"w{n}" for n in range(words)) + " <unk> <mask>\n")
    rounded = -(-(words + 4 + 1) // 8) * 8
    entries = binarise.most_frequent(tmp_path / "tokens", rounded - 5, ["<mask>"])
    assert len(list(binarise.dictionary(entries, ["<mask>"]))) + 4 == rounded
    with pytest.raises(PrepareError, match=f"only {words} different words; give --words at most {words + 5}"):
        binarise.most_frequent(tmp_path / "tokens", rounded + 8 - 5, ["<mask>"])


def test_other_settings_are_not_mixed_in(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = prepared / "text.txt", prepared / "out"
    before = content(out)
    for more in (["--words", "72"], ["--pieces", "64"], ["--words", "64", "--tokenize", "moses"]):
        assert main(arguments(text, out, *more)) == 1
        assert "was prepared with other" in capsys.readouterr().err
    other = write_text(prepared / "other.txt", seed=1)
    assert main(arguments(other, out)) == 1
    assert "other text;" in capsys.readouterr().err
    assert content(out) == before


def test_continues_after_kill(prepared: Path, tmp_path: Path) -> None:
    """Killed when binarising has begun, and with the files of a write that was cut short."""
    out = tmp_path / "out"
    line = resolve_command(["python", SCRIPT, *arguments(prepared / "text.txt", out)])
    process = subprocess.Popen(line, env=command_env(), start_new_session=True, stdout=subprocess.DEVNULL)
    while not (out / "dict.txt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "data-bin").exists()
    (out / "data-bin.tmp").mkdir(exist_ok=True)
    (out / "data-bin.tmp" / "dict.txt").write_text("cut 1\nsh")
    (out / "tokens" / "valid").unlink()
    (out / "tokens" / "valid.tmp").write_text("cut sh")
    run_command(["python", SCRIPT, *arguments(prepared / "text.txt", out)])
    assert content(out) == content(prepared / "out")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\n  \n\t\n", "has only blank lines"),
        (b"one\ntwo\n", "has 2 lines with text; at least 3"),
        (b"one\nt\xfcr\nthree\n", "line 2 of"),
    ],
)
def test_bad_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, said: str) -> None:
    (tmp_path / "bad").write_bytes(data)
    refused(capsys, tmp_path / "out", arguments(tmp_path / "bad", tmp_path / "out"), said, str(tmp_path))


def test_damaged_xz(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "text.xz"
    packed.write_bytes(lzma.compress(text.read_bytes())[:-300])
    refused(capsys, tmp_path / "out", arguments(packed, tmp_path / "out"), "text.xz is damaged")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--words", "7"], "--words must be at least 8, got 7"),
        (["--pieces", "8", "--add-symbol", "<mask>"], "--pieces must be at least 9, got 8"),
        (["--words", "5000"], "different words; give --words at most"),
        (["--pieces", "5000"], "too high"),
        (["--pieces", "12"], "sentencepiece could not train a model"),
        (["--pieces", "100", "--tokenize", "moses"], "goes with --words only"),
        (["--words", "64", "--add-symbol", "a b"], "without spaces"),
        (["--words", "64", "--workers", "0"], "--workers must be at least 1"),
        (["--gpt2-bpe", "nowhere"], "has no encoder.json"),
    ],
)
def test_bad_settings(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    refused(capsys, tmp_path / "out", arguments(text, tmp_path / "out", *more), said)


def test_an_empty_folder_is_used_and_left_empty(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert main(arguments(text, tmp_path / "out", "--words", "5000")) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_gpt2_files(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_gpt2(tmp_path / "gpt2", ["Do"])
    whole = (folder / "encoder.json").read_text()
    line = arguments(text, tmp_path / "out", "--gpt2-bpe", str(folder))
    (folder / "encoder.json").write_text(whole[:500])
    refused(capsys, tmp_path / "out", line, "is damaged")
    (folder / "encoder.json").write_text("{}")
    refused(capsys, tmp_path / "out", line, "incomplete")
    (folder / "encoder.json").write_text(whole)
    (folder / "dict.txt").write_text("one two three\n")
    refused(capsys, tmp_path / "out", line, "line 1 of")


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path / "out", arguments(tmp_path / "none", tmp_path / "out"), "there is no file")


@pytest.mark.parametrize("more", [[], ["--train", "a", "--valid", "b"], ["--text", "a", "--test", "b"]])
def test_texts_that_do_not_go_together(more: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", "out", "--words", "64", *more])


def test_lines_lost_by_fairseq_are_told(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that is not as long as its text would be a test of something else."""
    shutil.copytree(prepared / "out", tmp_path / "out")
    data = tmp_path / "out" / "data-bin"
    data.rename(tmp_path / "other")

    def mixed_up(arguments: list[str]) -> None:
        shutil.copytree(tmp_path / "other", tmp_path / "out" / "data-bin.tmp")
        for end in ("bin", "idx"):
            shutil.copy(
                tmp_path / "other" / f"test.{end}", tmp_path / "out" / "data-bin.tmp" / f"train.{end}"
            )

    monkeypatch.setattr(binarise, "_preprocess", mixed_up)
    with pytest.raises(PrepareError, match=r"train has \d+ lines and fairseq-preprocess took \d+ of them"):
        binarise.binarise(tmp_path / "out", 1)
    assert not data.exists()
