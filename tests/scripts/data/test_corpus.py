"""Corpora as corpus.toml describes them: archives in their real layout, read to plain text."""

from __future__ import annotations

import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from sacrebleu.dataset import DATASETS

from scripts.common.files import PrepareError
from scripts.data.corpus import Corpus, load
from scripts.data.extract_corpus import extract
from scripts.data.extract_corpus import main as extract_main
from scripts.data.fetch_corpus import main as fetch_main
from scripts.data.parallel import pairs, segments
from tests.examples.mirror import Mirror, bundled, make
from tests.helpers import REPO, run_command

RECIPES = REPO / "examples" / "translation"


def described(recipe: str, languages: str | None = None) -> Corpus:
    return load(RECIPES / recipe / "corpus.toml", languages)


def read(folder: Path, split: str, *sides: str) -> list[tuple[str, ...]]:
    columns = [(folder / f"{split}.{side}").read_text(encoding="utf-8").split("\n")[:-1] for side in sides]
    return list(zip(*columns, strict=True))


def failed(capsys: pytest.CaptureFixture[str], script: str, *said: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith(f"{script}: error: ") and error.count("\n") == 1, error
    for part in said:
        assert part in error


def test_wmt14(tmp_path: Path) -> None:
    make("wmt14_en_de", tmp_path / "archives")
    extract(described("wmt14_en_de"), tmp_path / "archives", tmp_path / "text")
    train = read(tmp_path / "text", "train", "en", "de")
    # The pair without a German side is left out; line ends inside a sentence are none.
    assert train[:300] == bundled("train", 0, 300) and train[301:] == bundled("train", 300, 600)
    assert train[300] == ("Spaces \u00a0and\u2028a line end", "Bleibt eine Zeile")
    assert read(tmp_path / "text", "valid", "en", "de") == bundled("valid", 0, 40)
    assert read(tmp_path / "text", "test", "en", "de") == bundled("test", 0, 40)
    assert not (tmp_path / "text" / "raw").exists()


def test_wmt16(tmp_path: Path) -> None:
    make("wmt16_en_ro", tmp_path / "archives")
    extract(described("wmt16_en_ro"), tmp_path / "archives", tmp_path / "text")
    train = read(tmp_path / "text", "train", "en", "ro")
    assert [english for english, _ in train] == [english for english, _ in bundled("train", 0, 600)]
    assert any("\u015f" in romanian for _, romanian in train)
    assert len(read(tmp_path / "text", "test", "en", "ro")) == 40


def test_iwslt14(tmp_path: Path) -> None:
    make("iwslt14_de_en", tmp_path / "archives")
    extract(described("iwslt14_de_en"), tmp_path / "archives", tmp_path / "text")
    train = read(tmp_path / "text", "train", "en", "de")
    wanted = bundled("train", 0, 600)
    assert train[0] == wanted[0] and train[2:] == wanted[2:]
    assert train[1] == (f"TED: {wanted[1][0]}", f"TED: {wanted[1][1]}")
    assert read(tmp_path / "text", "test", "en", "de") == bundled("test", 0, 40)
    assert not (tmp_path / "text" / "valid.de").exists()


def test_opus100(tmp_path: Path) -> None:
    make("opus100", tmp_path / "archives")
    corpus = described("opus100", "yo,de,fr")
    assert corpus.tags() == ["<2de>", "<2en>", "<2fr>", "<2yo>"]
    extract(corpus, tmp_path / "archives", tmp_path / "text", temperature=5)
    test = read(tmp_path / "text", "test", "src", "tgt", "tags")
    (english, german) = bundled("test", 0, 1)[0]
    assert test[:2] == [(english, german, "<2de>"), (german, english, "<2en>")]
    assert len(test) == 80 and {tag for _, _, tag in test} == {"<2de>", "<2en>", "<2fr>"}
    # 400, 20 and 10 pairs: shares as 400 ** .2, 20 ** .2 and 10 ** .2, the largest not repeated.
    train = read(tmp_path / "text", "train", "tags")
    counts = {tag: train.count((tag,)) for tag in corpus.tags()}
    assert counts["<2de>"] == 400
    assert counts["<2fr>"] == int(20 * 20**0.8) and counts["<2yo>"] == int(10 * 40**0.8)
    assert counts["<2en>"] == len(train) / 2
    repeated = read(tmp_path / "text", "train", "src", "tags")[800:]
    times = [
        repeated.count((english, "<2fr>")) for english in {text for text, tag in repeated if tag == "<2fr>"}
    ]
    assert max(times) - min(times) <= 1


def test_what_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("wmt16_en_ro", tmp_path / "archives")
    corpus = described("wmt16_en_ro")
    extract(corpus, tmp_path / "archives", tmp_path / "text")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "text").iterdir()}
    (tmp_path / "text" / "test.ro").unlink()
    extract(corpus, tmp_path / "archives", tmp_path / "text")
    assert "train.en: already there" in capsys.readouterr().out
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {"test.en", "test.ro"}


def test_segments_are_sacrebleus(tmp_path: Path) -> None:
    raw = tmp_path / "set.sgm"
    raw.write_text(
        '<srcset setid="x">\n<seg id="1">Tom &amp; Jerry </seg>\n<p>\n<seg id="2">  two\u00a0 three\t</seg>\n'
        '<seg id="3"></seg>\n</srcset>\n'
    )
    DATASETS["wmt14/full"]._convert_format(str(raw), str(tmp_path / "set.txt"))
    assert list(segments(raw)) == (tmp_path / "set.txt").read_text().split("\n")[:-1]


def test_every_archive_has_a_checksum_or_is_known_to_have_none() -> None:
    without = set()
    for recipe in ("wmt14_en_de", "wmt16_en_ro", "iwslt14_de_en", "opus100"):
        for archive in described(recipe).archives.values():
            assert archive.url.startswith("https://")
            digest = archive.sha256 or archive.md5
            if digest is None:
                without.add(archive.file)
            else:
                assert len(digest) == (64 if archive.sha256 else 32) and int(digest, 16)
    assert without == {"SETIMES.en-ro.txt.zip"}
    languages = described("opus100")
    assert len(languages.archives) == 99 and len({a.sha256 for a in languages.archives.values()}) == 99


def test_a_damaged_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("wmt14_en_de", tmp_path / "archives")
    whole = (tmp_path / "archives" / "training-parallel-commoncrawl.tgz").read_bytes()
    line = [str(RECIPES / "wmt14_en_de" / "corpus.toml"), "--archives", str(tmp_path / "archives")]
    line += ["--out", str(tmp_path / "text")]
    (tmp_path / "archives" / "training-parallel-commoncrawl.tgz").write_bytes(whole[: len(whole) // 2])
    assert extract_main(line) == 1
    failed(capsys, "extract_corpus.py", "training-parallel-commoncrawl.tgz is damaged", "download it again")
    assert not (tmp_path / "text").exists()
    (tmp_path / "archives" / "training-parallel-commoncrawl.tgz").unlink()
    assert extract_main(line) == 1
    failed(capsys, "extract_corpus.py", "there is no archive", "training-parallel-commoncrawl.tgz")


def pair(folder: Path, left: bytes, right: bytes) -> Path:
    """A corpus of one archive with these two sides, or with one; training and test set are the same."""
    with tarfile.open(folder / "x.tgz", "w:gz") as file:
        for name, data in (("x.a", left), ("x.b", right)):
            if data:
                (folder / name).write_bytes(data)
                file.add(folder / name, name)
    parts = "".join(f'[[{split}]]\narchive = "x"\nfiles = ["x.a", "x.b"]\n' for split in ("train", "test"))
    url = 'url = "https://example.org/x.tgz"'
    (folder / "corpus.toml").write_text(f'source = "a"\ntarget = "b"\n[archives.x]\n{url}\n{parts}')
    return folder / "corpus.toml"


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (b"one\ntwo\n", b"eins\n", "x.a has 2 sentences and"),
        (b"one\n", b"", "x.tgz has no x.b; it has x.a"),
        (b"one\n\xff\n", b"eins\nzwei\n", "sentence 2 of"),
    ],
)
def test_a_side_that_is_missing_or_short_or_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: bytes, right: bytes, said: str
) -> None:
    corpus = pair(tmp_path, left, right)
    assert extract_main([str(corpus), "--archives", str(tmp_path), "--out", str(tmp_path / "text")]) == 1
    failed(capsys, "extract_corpus.py", said)
    assert not (tmp_path / "text").exists()


def test_training_text_that_is_no_utf8_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo \xff\n\nfour\n")
    (tmp_path / "b").write_bytes(b"eins\nzwei\ndrei\nvier\n")
    files = tmp_path / "a", tmp_path / "b"
    assert list(pairs(files, "plain", strict=False)) == [("one", "eins"), ("four", "vier")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source = 'en'\n", "does not describe a corpus (KeyError: 'target')"),
        ("source = \n", "is not a TOML file"),
        (
            "source='en'\ntarget='de'\n[archives.x]\nsacrebleu='wmt99'\n",
            "sacrebleu has no test set wmt99 for en-de",
        ),
        (
            "source='en'\ntarget='de'\n[archives]\n[[train]]\narchive='y'\nfiles=['a','b']\n",
            "a text in the archive 'y', which it does not describe",
        ),
        ("source='en'\ntarget='de'\n[archives]\n", "names no text for the train set"),
    ],
)
def test_bad_descriptions(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "corpus.toml").write_text(text)
    with pytest.raises(PrepareError) as error:
        load(tmp_path / "corpus.toml")
    assert said in str(error.value)


def test_bad_languages_and_checksums(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text("no checksum\n")
    for recipe, languages, checksums, said in (
        ("opus100", "de,klingon", None, "has no language 'klingon'; --languages takes some of af,am,"),
        ("wmt14_en_de", "de", None, "has two languages"),
        ("wmt14_en_de", None, tmp_path / "sums", "line 1 of"),
    ):
        with pytest.raises(PrepareError) as error:
            load(RECIPES / recipe / "corpus.toml", languages, checksums)
        assert said in str(error.value)


def test_fetching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("scripts.data.download.WAIT", 0.01)
    sums = make("wmt14_en_de", tmp_path / "archives")
    europarl, crawl = "training-parallel-europarl-v7.tgz", "training-parallel-commoncrawl.tgz"
    with Mirror(tmp_path / "archives", dropped=europarl, corrupt=crawl) as mirror:
        line = [
            str(RECIPES / "wmt14_en_de" / "corpus.toml"),
            "--out",
            str(tmp_path / "got"),
            "--mirror",
            mirror.url,
        ]
        # By the checksums of the real files these are wrong.
        assert fetch_main(line) == 1
        failed(capsys, "fetch_corpus.py", europarl, "is damaged or was changed: its sha256 is")
        line += ["--checksums", str(sums)]
        assert fetch_main(line) == 1
        failed(capsys, "fetch_corpus.py", crawl, "the download was removed")
        assert [path.name for path in (tmp_path / "got").iterdir()] == [europarl]
        assert fetch_main(line) == 0
    half = (tmp_path / "archives" / europarl).stat().st_size // 2
    assert mirror.requests[:2] == [(europarl, None), (europarl, f"bytes={half}-")]
    for path in (tmp_path / "archives").iterdir():
        assert (tmp_path / "got" / path.name).read_bytes() == path.read_bytes()
    shutil.rmtree(tmp_path / "got")
    (tmp_path / "archives" / "wmt13.test.tgz").unlink()
    line = [*line[:3], "--checksums", str(sums), "--offline", str(tmp_path / "archives")]
    assert fetch_main(line) == 1
    failed(
        capsys,
        "fetch_corpus.py",
        "archives has no wmt13.test.tgz; put the file there, from https://statmt.org/wmt13/test.tgz",
    )


def limited(kilobytes: int, *line: str) -> tuple[int, str]:
    """Run a script where no file may become larger, as on a disk that is full."""
    # Not "python": that is forked, from a process without the limit. Modules are not compiled into files.
    command = f'ulimit -f {kilobytes}; exec {shlex.quote(sys.executable)} -B "$@"'
    done = run_command(["bash", "-c", command, "bash", *line], check=False)
    return done.returncode, done.stderr


def test_a_full_disk(tmp_path: Path) -> None:
    sums = make("wmt14_en_de", tmp_path / "archives")
    corpus = str(RECIPES / "wmt14_en_de" / "corpus.toml")
    line = ["scripts/data/extract_corpus.py", corpus, "--archives", str(tmp_path / "archives")]
    code, said = limited(10, *line, "--out", str(tmp_path / "text"))
    assert code == 1 and said.count("\n") == 1
    assert said.startswith("extract_corpus.py: error: File too large, writing to ")
    assert not (tmp_path / "text").exists()
    with Mirror(tmp_path / "archives") as mirror:
        line = ["scripts/data/fetch_corpus.py", corpus, "--mirror", mirror.url, "--checksums", str(sums)]
        code, said = limited(5, *line, "--out", str(tmp_path / "got"))
    assert code == 1 and "europarl-v7.tgz.part cannot be written (File too large)" in said
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["training-parallel-europarl-v7.tgz.part"]
