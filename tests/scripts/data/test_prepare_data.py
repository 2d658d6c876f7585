"""scripts/data/prepare_data.py, run for real on tiny corpora."""

from __future__ import annotations

import lzma
import signal
import subprocess
import time
from pathlib import Path

import pytest
import sentencepiece

from tests.helpers import REPO, command_env, resolve_command, run_command, write_toy_corpus

SCRIPT = REPO / "scripts" / "data" / "prepare_data.py"
BUNDLED = REPO / "examples" / "translation" / "data"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_toy_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


def command(source: Path, out: Path, *more: str, langs: str = "src-tgt", vocab: int = 60) -> list[str]:
    src, tgt = langs.split("-")
    flags = ["--src", src, "--tgt", tgt, "--vocab-size", str(vocab)]
    return ["python", str(SCRIPT), "--source", str(source), "--out", str(out), *flags, *more]


def refused(source: Path, out: Path, *said: str, **settings: object) -> str:
    """Run it on bad input: one sentence with ``said`` in it, exit 1, nothing left behind."""
    done = run_command(command(source, out, **settings), check=False)  # type: ignore[arg-type]
    assert done.returncode == 1
    assert done.stderr.startswith("prepare_data.py: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for text in said:
        assert text in done.stderr
    assert not out.exists()
    return done.stderr


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """File -> content and time of writing."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in tree(folder).items()}


def test_pieces_decode_to_the_text(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_command(command(corpus, out))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    assert pieces.get_piece_size() == 60
    for name in (f"{split}.{lang}" for split in ("train", "valid", "test") for lang in ("src", "tgt")):
        text = (corpus / name).read_text()
        assert (out / "text" / name).read_text() == text
        encoded = (out / "pieces" / name).read_text().splitlines()
        assert [pieces.decode(line.split(" ")) for line in encoded] == text.splitlines()
    assert not list(out.rglob("*.tmp"))


def test_bundled_corpus_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_command(command(BUNDLED, out, langs="en-de", vocab=2000))
    for split, count in (("train", 8401), ("valid", 500), ("test", 500)):
        for lang in ("en", "de"):
            assert (out / "text" / f"{split}.{lang}").read_bytes().count(b"\n") == count
            assert (out / "pieces" / f"{split}.{lang}").read_bytes().count(b"\n") == count
    assert (BUNDLED / "LICENSE-Apache-2.0.txt").is_file()
    assert "homeassistant" in (BUNDLED / "README.md").read_text()


def test_second_run_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_command(command(corpus, out))
    before = tree(out)
    done = run_command(command(corpus, out))
    assert tree(out) == before
    assert "written" not in done.stdout and "already there" in done.stdout


def test_two_runs_write_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    run_command(command(corpus, tmp_path / "a"))
    run_command(command(corpus, tmp_path / "b"))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_what_is_missing_is_made_again(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_command(command(corpus, out))
    whole = tree(out)
    for name in ("spm.model", "pieces/test.tgt"):
        (out / name).unlink()
    # What a kill leaves of a file being written.
    (out / "pieces" / "test.tgt.tmp").write_text("▁ha")
    run_command(command(corpus, out))
    after = tree(out)
    assert {name: data for name, (data, _) in after.items()} == {n: d for n, (d, _) in whole.items()}
    assert {n for n in whole if after[n] != whole[n]} == {"spm.model", "pieces/test.tgt"}


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.05, 0.2, 0.3, 0.4])
def test_continues_after_kill(tmp_path: Path, delay: float) -> None:
    run_command(command(BUNDLED, tmp_path / "whole", langs="en-de", vocab=2000))
    killed = tmp_path / "killed"
    line = resolve_command(command(BUNDLED, killed, langs="en-de", vocab=2000))
    process = subprocess.Popen(line, env=command_env(), stdout=subprocess.DEVNULL)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Whatever is there under its own name is whole.
    whole = content(tmp_path / "whole")
    for name, data in (content(killed) if killed.exists() else {}).items():
        assert name.endswith(".tmp") or data == whole[name]
    run_command(command(BUNDLED, killed, langs="en-de", vocab=2000))
    assert content(killed) == whole


def test_compressed_and_plain_are_the_same(corpus: Path, tmp_path: Path) -> None:
    run_command(command(corpus, tmp_path / "plain"))
    for path in corpus.iterdir():
        (corpus / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes()))
        path.unlink()
    run_command(command(corpus, tmp_path / "xz"))
    assert content(tmp_path / "plain") == content(tmp_path / "xz")


def test_only_line_feeds_end_lines(corpus: Path, tmp_path: Path) -> None:
    lines = (corpus / "train.src").read_text().splitlines()
    lines[3] = "ba\u2028be\x0bbi\rbo"
    # The last line may lack its line feed; lines may end as on Windows.
    (corpus / "train.src").write_bytes("\r\n".join(lines).encode())
    out = tmp_path / "out"
    run_command(command(corpus, out))
    assert (out / "text" / "train.src").read_bytes().count(b"\n") == len(lines)
    with open(out / "pieces" / "train.src", encoding="utf-8") as pieces:
        assert sum(1 for _ in pieces) == len(lines)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_unequal_lengths(corpus: Path, tmp_path: Path, split: str) -> None:
    path = corpus / f"{split}.tgt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    refused(corpus, tmp_path / "out", f"{split}.src", f"{split}.tgt", f"{len(lines)}", f"{len(lines) - 1}")


def test_empty_file(corpus: Path, tmp_path: Path) -> None:
    (corpus / "valid.src").write_text("")
    refused(corpus, tmp_path / "out", "valid.src is empty")


@pytest.mark.parametrize("blank", ["", "  \t"])
def test_empty_line(corpus: Path, tmp_path: Path, blank: str) -> None:
    lines = (corpus / "train.tgt").read_text().splitlines()
    lines[6] = blank
    (corpus / "train.tgt").write_text("\n".join(lines) + "\n")
    refused(corpus, tmp_path / "out", "line 7 of", "train.tgt is empty")


def test_not_utf8(corpus: Path, tmp_path: Path) -> None:
    lines = (corpus / "test.tgt").read_bytes().split(b"\n")
    lines[1] = "Tür".encode("latin-1")
    (corpus / "test.tgt").write_bytes(b"\n".join(lines))
    refused(corpus, tmp_path / "out", "line 2 of", "test.tgt is not UTF-8")


def test_truncated_xz(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "train.src"
    packed = lzma.compress(path.read_bytes())
    path.unlink()
    (corpus / "train.src.xz").write_bytes(packed[: len(packed) // 2])
    refused(corpus, tmp_path / "out", "train.src.xz is damaged")


def test_missing_file(corpus: Path, tmp_path: Path) -> None:
    (corpus / "valid.tgt").unlink()
    refused(corpus, tmp_path / "out", "no valid.tgt or valid.tgt.xz in")


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path / "out", "is not a folder")


@pytest.mark.parametrize("vocab, said", [(100_000, "too high"), (10, "sentencepiece"), (0, "at least 8")])
def test_vocabulary_that_cannot_be(corpus: Path, tmp_path: Path, vocab: int, said: str) -> None:
    refused(corpus, tmp_path / "out", said, str(vocab), vocab=vocab)


def test_one_language(corpus: Path, tmp_path: Path) -> None:
    refused(corpus, tmp_path / "out", "both src", langs="src-src")


def test_other_settings_are_not_mixed_in(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_command(command(corpus, out))
    before = tree(out)
    done = run_command(command(corpus, out, vocab=70), check=False)
    assert done.returncode == 1 and "other vocab_size" in done.stderr
    write_toy_corpus(corpus, seed=1)
    done = run_command(command(corpus, out), check=False)
    assert done.returncode == 1 and "other text" in done.stderr
    assert tree(out) == before
