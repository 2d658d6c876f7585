"""scripts/data/prepare_labelled.py, run for real on tiny files."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data import Dictionary, data_utils
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from scripts.common.files import PrepareError
from scripts.data import prepare_labelled
from tests.helpers import run_command, write_toy_corpus

#: Labels of numbers, in an order that is neither theirs nor the alphabet's.
LABELS = ("10", "9", "2")
SIZES = {"train": 40, "valid": 9, "test": 9}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    write_toy_corpus(folder, SIZES)
    for split in SIZES:
        lines = (folder / f"{split}.src").read_text().splitlines()
        labelled = [f"{LABELS[number % 3]}\t{line}" for number, line in enumerate(lines)]
        (folder / f"{split}.tsv").write_text("\n".join(labelled) + "\n")
        for side in ("src", "tgt"):
            (folder / f"{split}.{side}").unlink()
    return folder


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """Of every word there is but one."""
    words = [f"{a}{b}" for a in "bdfgklmn" for b in "aeiou"]
    path = tmp_path / "dict.txt"
    path.write_text("".join(f"{word} {100 - number}\n" for number, word in enumerate(words[:-1])))
    return path


def line(source: Path, out: Path, dictionary: Path, *more: str) -> list[str]:
    return ["--source", str(source), "--out", str(out), "--dict", str(dictionary), *more]


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """File -> content and time of writing."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def as_fairseq_reads(out: Path, split: str) -> list[tuple[str, str]]:
    """(label, text) as the task has them, which sorts."""
    config = SentencePredictionConfig(data=str(out), num_classes=3, seed=1, no_shuffle=True, init_token=0)
    config.regression_target, config.classification_head_name = False, "none"
    task = SentencePredictionTask.setup_task(config)
    data = task.load_dataset(split)
    first = task.label_dictionary.nspecial
    return [
        (
            task.label_dictionary[int(data[n]["target"]) + first],
            task.source_dictionary.string(data[n]["net_input.src_tokens"][1:]),
        )
        for n in range(len(data))
    ]


@pytest.mark.slow
def test_what_fairseq_reads(source: Path, dictionary: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_command(["python", "scripts/data/prepare_labelled.py", *line(source, out, dictionary)])
    assert "classes: 3 (2, 9, 10); the longest text has 9 tokens" in done.stdout
    # The dictionary that was given, not one of these texts.
    assert (out / "input0" / "dict.txt").read_bytes() == dictionary.read_bytes()
    assert (out / "label" / "dict.txt").read_text() == "2 13\n9 13\n10 14\n"
    for split in SIZES:
        expected = [each.split("\t") for each in (source / f"{split}.tsv").read_text().splitlines()]
        found = as_fairseq_reads(out, split)
        assert len(found) == SIZES[split]
        for (label, text), (given, words) in zip(found, expected, strict=True):
            assert label == given
            # The word that the dictionary lacks.
            assert text == " ".join("<unk>" if word == "nu" else word for word in words.split())
    assert not list(out.rglob("*.tmp"))

    before = tree(out)
    (out / "label" / "test.bin").unlink()
    again = run_command(["python", "scripts/data/prepare_labelled.py", *line(source, out, dictionary)])
    assert "written" not in again.stdout
    (out / "label" / "test.bin").write_bytes(before["label/test.bin"][0])
    assert {name: content for name, (content, _) in tree(out).items()} == {
        name: content for name, (content, _) in before.items()
    }

    (source / "valid.tsv").write_text("2\tba be\n")
    with pytest.raises(PrepareError, match="prepared with other text"):
        prepare_labelled.prepare(source, out, dictionary, None, "none", "en", 1)


@pytest.fixture
def pieces(source: Path, tmp_path: Path) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(
            each.split("\t")[1] for each in (source / "train.tsv").read_text().splitlines()
        ),
        model_writer=model, vocab_size=40, model_type="bpe", minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spm.model").write_bytes(model.getvalue())
    return tmp_path / "spm.model"


@pytest.mark.slow
def test_pieces_of_compressed_files(source: Path, pieces: Path, tmp_path: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    known = tmp_path / "pieces.txt"
    known.write_text("".join(f"{model.id_to_piece(n)} 1\n" for n in range(3, 40)))
    texts = {split: (source / f"{split}.tsv").read_text() for split in SIZES}
    for split, text in texts.items():
        (source / f"{split}.tsv").unlink()
        (source / f"{split}.tsv.xz").write_bytes(lzma.compress(text.encode()))
    out = tmp_path / "out"
    assert prepare_labelled.main(line(source, out, known, "--pieces", str(pieces))) == 0
    table = Dictionary.load(str(out / "input0" / "dict.txt"))
    data = data_utils.load_indexed_dataset(str(out / "input0" / "valid"), table)
    for number, expected in enumerate(texts["valid"].splitlines()):
        words = table.string(data[number]).split()
        assert model.decode(words) == expected.split("\t")[1]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that it ends with; nothing is left behind."""
    assert prepare_labelled.main(list(arguments)) == 1
    said = capsys.readouterr().err
    assert said.startswith("prepare_labelled.py: error: ") and said.count("\n") == 1
    assert not Path(arguments[3]).exists()
    return said


@pytest.mark.parametrize(
    ("split", "text", "sentence"),
    [
        ("train", b"", "train.tsv is empty; at least one sentence was expected"),
        ("valid", b"", "valid.tsv is empty; at least one sentence was expected"),
        ("train", b"2\tba be\nba be\n", "line 2 of {} has no tab; a label, a tab and a text were expected"),
        ("test", b"2\tba\n9\t\n", "line 2 of {} has no tab; a label, a tab and a text were expected"),
        ("test", b"2\tba\n\n", "line 2 of {} is empty"),
        ("train", b"2\tba\n9\tT\xfcr\n", "line 2 of {} is not UTF-8"),
        (
            "valid",
            b"2\tba\n7\tbe\n",
            "line 2 of {} has the label '7', and the training set has only 2, 9, 10",
        ),
        ("train", b"2\tba\na b\tbe\n", "line 2 of {} has the label 'a b'; a label is one word"),
        ("train", b"2\tba\n<unk>\tbe\n", "line 2 of {} has the label '<unk>'; a label is one word"),
        ("train", b"2\tba\n2\tbe\n", "all of {} has the label '2'; at least two labels were expected"),
        ("train", None, "there is no train.tsv or train.tsv.xz in"),
    ],
)
def test_bad_text(
    split: str, text: bytes | None, sentence: str, source: Path, dictionary: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = source / f"{split}.tsv"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    said = refused(capsys, *line(source, tmp_path / "out", dictionary))
    assert sentence.format(path) in said


def test_bad_files(source: Path, dictionary: Path, pieces: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    none, words = tmp_path / "none", tmp_path / "words"
    words.write_text("ba\n")
    assert f"--source {none} is not a folder" in refused(capsys, *line(none, out, dictionary))
    assert f"there is no file {none}" in refused(capsys, *line(source, out, none))
    said = refused(capsys, *line(source, out, words))
    assert f"line 1 of {words} is not a token and its count" in said
    said = refused(capsys, *line(source, out, dictionary, "--pieces", str(words)))
    assert f"{words} is no sentencepiece model" in said
    said = refused(capsys, *line(source, out, dictionary, "--pieces", str(pieces)))
    assert f"of the 40 pieces of {pieces}; give the two that the model was pretrained with" in said
    assert "--workers must be at least 1, got 0" in refused(
        capsys, *line(source, out, dictionary, "--workers", "0")
    )


def test_a_truncated_archive(source: Path, dictionary: Path, tmp_path: Path, capsys) -> None:
    packed = lzma.compress((source / "valid.tsv").read_bytes())
    (source / "valid.tsv").unlink()
    (source / "valid.tsv.xz").write_bytes(packed[: len(packed) // 2])
    said = refused(capsys, *line(source, tmp_path / "out", dictionary))
    assert "valid.tsv.xz is damaged or not an xz file" in said
