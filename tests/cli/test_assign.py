"""`mhe assign` on binarised data, for real."""

from __future__ import annotations

import argparse
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mhe_fairseq.cli.data import read_dictionary
from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.coding.assign import frequency_slots
from mhe_fairseq.coding.shortlist import plan_shortlist
from mhe_fairseq.tasks.binarised import BinarisedText
from tests.helpers import run_command

MHE = ["python", "-m", "mhe_fairseq.cli.main"]
#: The toy dictionary: 4 special symbols, 40 words and their capitals, padded to a multiple of 8.
VOCAB = 88


@pytest.fixture
def data(toy_data: Path, tmp_path: Path) -> Path:
    """A copy of the toy data that a test may spoil."""
    return Path(shutil.copytree(toy_data, tmp_path / "data-bin"))


def fingerprint(dictionary: Path) -> str:
    return symbols_fingerprint(read_dictionary(dictionary).symbols)


def test_clusters_of_the_target_side(toy_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "codes"
    args = ["assign", "--data", str(toy_data), "--target-only", "--lengths", "8,12", "-o", str(output)]
    done = run_command([*MHE, *args])
    book = Codebook.load(output)
    assert book.lengths == (8, 12) and len(book) == VOCAB and book.holes == 8
    assert book.dictionary == fingerprint(toy_data / "dict.tgt.txt")
    book.check_dictionary(fingerprint(toy_data / "dict.tgt.txt"), VOCAB)
    # Words of the source are not in the text: dealt out evenly, behind the others of their group.
    symbols = read_dictionary(toy_data / "dict.tgt.txt").symbols
    rows = book.token_of_slot.view(8, 12)
    for row in rows:
        words = [symbols[token] for token in row.tolist() if token >= 0]
        assert 4 <= sum(word.isupper() for word in words) <= 6
    for part in (
        "88 tokens in 8 x 12 = 96 slots, 8 holes",
        "groups of 11 to 11 tokens",
        f"fingerprint {book.fingerprint}, of the dictionary {book.dictionary}",
        " seconds\n",
        "seed 1",
    ):
        assert part in done.stdout
    examples = done.stdout.split("examples:\n")[1].splitlines()
    assert len(examples) == 5 and all("% of the text): " in line for line in examples)
    assert len(examples[0].split(": ")[1].split()) == 10
    for stage in ("counting tokens", "counting pairs", "SVD", "bisection"):
        assert stage in done.stderr
    again = tmp_path / "again"
    assert main([*args[:-1], str(again)]) == 0
    assert Codebook.load(again) == book
    other = tmp_path / "other"
    assert main([*args[:-1], str(other), "--target-lang", "src"]) == 0
    assert Codebook.load(other) != book


def test_a_joined_dictionary_is_clustered_by_both_sides(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "codes"
    args = ["assign", "--data", str(data), "--lengths", "8,12", "-o", str(output)]
    assert main(args) == 0
    assert " of both sides, seed 1" in capsys.readouterr().out
    book = Codebook.load(output)
    symbols = read_dictionary(data / "dict.tgt.txt").symbols
    kinds = []
    for row in book.token_of_slot.view(8, 12):
        words = [symbols[token] for token in row.tolist() if token >= 0 and symbols[token].isalpha()]
        kinds.append({word.isupper() for word in words})
    # Words of the source stand among words of the source, so most groups are of one side.
    assert sum(len(kind) == 1 for kind in kinds) >= 5
    # Two dictionaries that only look alike are two.
    symbols_file = data / "dict.src.txt"
    symbols_file.write_text("".join(reversed(symbols_file.read_text().splitlines(keepends=True))))
    assert main(args) == 0
    assert "of both sides" not in capsys.readouterr().out
    assert Codebook.load(output) != book


@pytest.mark.parametrize("more", [["--by", "random"], ["--from-checkpoint", "x.pt"]])
def test_target_only_is_about_text(
    more: list[str], toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["assign", "--data", str(toy_data), "--target-only", "-o", str(tmp_path / "codes"), *more]
    assert main(args) == 1
    assert "--target-only chooses the text to cluster, and no text is clustered" in capsys.readouterr().err


def test_frequency_and_random(toy_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "codes"

    def assign(*more: str) -> Codebook:
        assert main(["assign", "--data", str(toy_data), "-o", str(output), *more]) == 0
        return Codebook.load(output)

    frequency = assign("--by", "frequency", "--lengths", "9,10")
    assert frequency == Codebook((9, 10), frequency_slots(VOCAB, (9, 10)))
    one, same, two = (assign("--by", "random", "--lengths", "9,10", "--seed", seed) for seed in "112")
    assert one == same != two
    # Without lengths they are planned for the vocabulary.
    assert assign("--by", "frequency").holes <= 2
    assert assign("--by", "frequency", "--lengths", "100").lengths == (100,)


@pytest.mark.parametrize("by", ["cluster", "frequency", "random"])
def test_a_shortlist_is_of_the_text(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    output = tmp_path / "codes"
    assert main(["assign", "--data", str(toy_data), "--shortlist", "16", "--by", by, "-o", str(output)]) == 0
    book = Codebook.load(output)
    assert book.lengths == plan_shortlist(VOCAB, 16)
    symbols = read_dictionary(toy_data / "dict.tgt.txt").symbols
    alone = [symbols[token] for token in book.token_of_slot.view(book.lengths)[:16, 0].tolist()]
    assert "</s>" in alone, "every sentence has one"
    assert all(word.isupper() for word in alone if word.isalpha()), (
        "words of the source do not occur in the target's text"
    )
    shown = capsys.readouterr().out
    assert "the 16 most frequent tokens by themselves, then" in shown
    groups = [int(number) for number in re.findall(r"^  group (\d+)", shown, re.MULTILINE)]
    assert len(groups) == 5 and min(groups) >= 16, "examples are of the rest"


def test_a_language_model_and_symbols_that_its_task_adds(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mono"
    folder.mkdir()
    shutil.copy(toy_data / "dict.tgt.txt", folder / "dict.txt")
    for shard in ("", "1"):
        for ending in ("bin", "idx"):
            shutil.copy(toy_data / f"train.src-tgt.tgt.{ending}", folder / f"train{shard}.{ending}")
    output = tmp_path / "codes"
    args = ["assign", "--data", str(folder), "--lengths", "9,10", "-o", str(output)]
    assert main([*args, "--add-symbol", "<mask>"]) == 0
    book = Codebook.load(output)
    assert len(book) == VOCAB + 1
    dictionary = read_dictionary(folder / "dict.txt", ["<mask>"])
    assert book.dictionary == symbols_fingerprint(dictionary.symbols) != fingerprint(folder / "dict.txt")
    shown = capsys.readouterr().out
    both = BinarisedText([str(folder / "train"), str(folder / "train1")]).tokens
    assert f"clusters of neighbours in {both:,} tokens" in shown  # both shards
    assert main([*args, "--add-symbol", "<unk>"]) == 1
    assert "has this symbol already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_checkpoint(toy_data: Path, tmp_path: Path) -> None:
    run_command(
        ["fairseq-train", str(toy_data), "--cpu", "--arch", "transformer_iwslt_de_en", "--optimizer", "adam"]
        + ["--share-all-embeddings", "--encoder-layers", "1", "--decoder-layers", "1"]
        + ["--encoder-embed-dim", "8", "--decoder-embed-dim", "8", "--encoder-ffn-embed-dim", "8"]
        + ["--encoder-attention-heads", "1", "--decoder-attention-heads", "1", "--max-tokens", "500"]
        + ["--max-update", "1", "--save-dir", str(tmp_path), "--disable-validation", "--lr", "0.01"]
    )
    output = tmp_path / "codes"
    checkpoint = tmp_path / "checkpoint_last.pt"
    args = ["assign", "--data", str(toy_data), "--from-checkpoint", str(checkpoint), "--lengths", "8,11"]
    done = run_command([*MHE, *args, "-o", str(output)])
    book = Codebook.load(output)
    assert len(book) == VOCAB and book.holes == 0
    assert "clusters of the embedding in" in done.stdout and "counting" not in done.stderr


def test_a_checkpoint_embedding_is_clustered(toy_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    which = torch.arange(VOCAB) % 8
    embedding = torch.randn(8, 16)[which] + 0.01 * torch.randn(VOCAB, 16)
    path, output = tmp_path / "model.pt", tmp_path / "codes"
    state = {"model": {"decoder.embed_tokens.weight": embedding}, "args": argparse.Namespace(arch="x")}
    torch.save(state, path)
    args = ["--from-checkpoint", str(path), "--lengths", "8,11", "-o", str(output)]
    assert main(["assign", "--data", str(toy_data), *args]) == 0
    first = Codebook.load(output).digits(torch.arange(VOCAB))[:, 0]
    assert all(which[first == group].unique().numel() == 1 for group in range(8))


# ---- bad input: a clear sentence, exit 1, and what was there stays


def refused(data: Path | str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The sentence on stderr."""
    output = tmp_path / "codes"
    Codebook((2, 3)).save(output)
    before = output.read_bytes()
    assert main(["assign", "--data", str(data), "-o", str(output), *more]) == 1
    assert output.read_bytes() == before
    assert [path.name for path in tmp_path.glob("codes*")] == ["codes"]
    printed = capsys.readouterr()
    assert printed.out == ""
    sentence = printed.err.strip().splitlines()[-1]
    assert sentence.startswith("mhe: ")
    return sentence


def remove(*names: str) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        for name in names:
            (data / name).unlink()

    return spoil


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda data: void((data / name).write_bytes(content))


def void(_: object) -> None:
    pass


def shorten(data: Path) -> None:
    path = data / "train.src-tgt.tgt.bin"
    path.write_bytes(path.read_bytes()[:-100])


def fewer_symbols(data: Path) -> None:
    path = data / "dict.tgt.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))


def second_pair(data: Path) -> None:
    for ending in ("bin", "idx"):
        shutil.copy(data / f"train.src-tgt.src.{ending}", data / f"train.tgt-src.src.{ending}")


TEXT = "train.src-tgt.tgt"


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (remove("dict.tgt.txt"), [], "has no dict.tgt.txt, the dictionary of the target side"),
        (remove("dict.tgt.txt"), [], "dictionaries there: dict.src.txt"),
        (
            remove(f"{TEXT}.idx", f"{TEXT}.bin"),
            [],
            "has no binarised target side: expected train.*-tgt.tgt.idx with its .bin "
            "(training texts there: train.src-tgt.src)",
        ),
        (remove(f"{TEXT}.bin"), [], f"{TEXT}.bin are not a binarised text (one of the two is missing)"),
        (write(f"{TEXT}.idx", b"junk"), [], f"{TEXT}.bin are not a binarised text"),
        (write(f"{TEXT}.idx", b""), [], f"{TEXT}.bin are not a binarised text"),
        (write(f"{TEXT}.bin", b""), [], f"{TEXT}.bin is empty; clusters need text"),
        (shorten, [], "its index says"),
        (fewer_symbols, [], "the dictionary has 0..23 only; they do not belong together"),
        (
            write("dict.tgt.txt", b"a 1\nb\n"),
            [],
            "dict.tgt.txt cannot be read, every line must be `symbol count`",
        ),
        (write("dict.tgt.txt", b"a 1\na 2\n"), [], "Duplicate word found"),
        (write("dict.tgt.txt", b"\xff\xfe 1\n"), [], "dict.tgt.txt cannot be read"),
        (write("dict.tgt.txt", b""), [], "dict.tgt.txt has no symbols"),
        (second_pair, [], "has several pairs (src-tgt, tgt-src); say which side with --target-lang"),
        (void, ["--target-lang", "fr"], "has no dict.fr.txt"),
        (void, ["--lengths", "8,10"], "lengths 8,10 give 80 slots for 88 tokens"),
        (void, ["--lengths", "8,ten"], "lengths must be whole numbers separated by commas"),
        (void, ["--lengths", "2.7,50"], "lengths must be whole numbers separated by commas"),
        (void, ["--seed", "-1"], "--seed must be a whole number from 0 to 2**63 - 1, got -1"),
        (void, ["--by", "random", "--seed", str(2**63)], "--seed must be a whole number from 0 to"),
        (void, ["--lengths", "88"], "needs at least two lengths such as 8,11; got 88"),
        (void, ["--shortlist", "0"], "at least 1 token and fewer than all 88; got 0"),
        (
            void,
            ["--shortlist", "10", "--lengths", "12,20"],
            "have 40 slots beside a shortlist of 10, for the 78",
        ),
        (void, ["--shortlist", "10", "--by", "random", "--lengths", "88"], "at least two lengths; got 88"),
        (
            write(f"{TEXT}.bin", b""),
            ["--shortlist", "9", "--by", "frequency"],
            f"{TEXT}.bin is empty; clusters need text",
        ),
        (void, ["--contexts", "0"], "--contexts is a number of tokens, at least 1; got 0"),
        (void, ["--by", "random", "--from-checkpoint", "x"], "cannot be combined with --by random"),
        (void, ["--from-checkpoint", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
    ],
)
def test_bad_data(
    spoil: Callable[[Path], None],
    more: list[str],
    message: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(data)
    assert message in refused(data, tmp_path, capsys, *more)


def test_what_is_no_codebook_is_not_replaced(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    args = ["assign", "--data", str(toy_data), "--by", "random", "-o"]
    assert main([*args, str(mine)]) == 1
    assert "is a file of 4 bytes that is no codebook" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    codes = tmp_path / "codes"
    for seed in ("1", "2"):  # its own may be made again
        assert main([*args, str(codes), "--seed", seed]) == 0
    assert Codebook.load(codes) != Codebook((1, 1))


def test_a_full_disk_is_told_in_a_sentence(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 896 vs 790")

    monkeypatch.setattr(torch, "save", full)
    assert main(["assign", "--data", str(toy_data), "--by", "random", "-o", str(tmp_path / "codes")]) == 1
    assert "cannot be written (not all of it: the disk is full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_directories(toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no data directory" in refused(tmp_path / "none", tmp_path, capsys)
    assert "--data is empty" in refused("", tmp_path, capsys)
    assert "has no dict.txt" in refused(tmp_path, tmp_path, capsys)
    plain_text = toy_data.parent / "text"
    assert "give a directory written by fairseq-preprocess" in refused(plain_text, tmp_path, capsys)
    assert "there is no data directory" in refused(toy_data / "dict.tgt.txt", tmp_path, capsys)
    for output, message in (
        (tmp_path / "none" / "codes", f"there is no directory {tmp_path / 'none'} to write"),
        (tmp_path, "is a directory; give a file name"),
    ):
        assert main(["assign", "--data", str(toy_data), "-o", str(output)]) == 1
        assert message in capsys.readouterr().err


class Harm:
    """Would write a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (open, (str(self.path), "w"))


def test_bad_checkpoints(toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"

    def said(content: object) -> str:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return refused(toy_data, tmp_path, capsys, "--from-checkpoint", str(path))

    name = "decoder.embed_tokens.weight"
    assert "not a fairseq checkpoint that can be read safely" in said(b"junk")
    assert "not a fairseq checkpoint that can be read safely" in said(b"")
    harmed = tmp_path / "harmed"
    assert "not a fairseq checkpoint that can be read safely" in said({"model": Harm(harmed)})
    assert "not a fairseq checkpoint that can be read safely" in said(pickle.dumps(Harm(harmed), protocol=2))
    assert not harmed.exists()
    assert "it has no part `model`" in said({"weights": 1})
    assert "it has no part `model`" in said([1, 2])
    assert "has no token embedding" in said({"model": {"encoder.weight": torch.ones(2, 2)}})
    assert "is of 87 tokens, the dictionary has 88" in said({"model": {name: torch.ones(87, 4)}})
    assert "V x d matrix" in said({"model": {name: torch.ones(88)}})
    assert "NaN or infinity" in said({"model": {name: torch.full((88, 4), torch.nan)}})
