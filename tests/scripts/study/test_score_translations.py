"""scripts/study/score_translations.py on what fairseq-generate writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import sacrebleu

from scripts.study.score_translations import main
from tests.examples.mirror import bundled

GERMAN = [german for _, german in bundled("test", 0, 30)]


def generated(folder: Path, translations: list[str]) -> Path:
    """In the order of fairseq-generate, which is not the set's."""
    path = folder / "generate-test.txt"
    order = sorted(range(len(translations)), key=lambda number: -len(translations[number]))
    path.write_text(
        "".join(f"S-{n}\tx\nH-{n}\t-0.5\t{translations[n]}\nP-{n}\t-1\n" for n in order), encoding="utf-8"
    )
    return path


def score(folder: Path, translations: list[str], references: list[str], *more: str) -> int:
    (folder / "test.de").write_text("".join(f"{line}\n" for line in references), encoding="utf-8")
    line = [str(generated(folder, translations)), "--reference", str(folder / "test.de"), "--name", "x"]
    return main([*line, "--out", str(folder / "hypotheses"), *more])


def test_scores_are_sacrebleus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    translations = [line.replace("e", "a", 1) for line in GERMAN]
    assert score(tmp_path, translations, GERMAN) == 0
    said = capsys.readouterr().out
    bleu = sacrebleu.corpus_bleu(translations, [GERMAN])
    assert f"x: test set of 30 sentences: BLEU {bleu.score:.2f} (brevity penalty {bleu.bp:.3f})" in said
    assert "BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in said
    assert (tmp_path / "hypotheses").read_text(encoding="utf-8").split("\n")[:-1] == translations


def test_lowercased_words_of_moses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = ["It's (almost) done, isn't it?", "Nothing else."] * 5
    words = ["it 's ( almost ) done , isn 't it ?", "nothing else ."] * 5
    assert score(tmp_path, words, references, "--lowercase", "--detokenize", "en") == 0
    said = capsys.readouterr().out
    assert "BLEU 100.00" in said and "case:lc" in said
    assert (tmp_path / "hypotheses").read_text().startswith("it's (almost) done, isn't it?\n")


def test_a_reference_with_other_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = ["\u015fi ce \u0163ar\u0103 mare este aici"] * 3
    translations = ["\u0219i ce \u021bar\u0103 mare este aici"] * 3
    assert score(tmp_path, translations, references, "--normalize", "romanian") == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert (
        "BLEU 100.00" not in first and "reference normalised (romanian)" in second and "BLEU 100.00" in second
    )


def test_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = [text for pair in bundled("test", 0, 10) for text in pair]
    tags = ["<2en>", "<2de>"] * 8 + ["<2en>", "<2zh>"] * 2
    (tmp_path / "tags").write_text("".join(f"{tag}\n" for tag in tags))
    translations = [line if tag == "<2en>" else "nichts" for line, tag in zip(references, tags, strict=True)]
    assert score(tmp_path, translations, references, "--tags", str(tmp_path / "tags")) == 0
    said = capsys.readouterr().out
    assert "x, de to en: test set of 8 sentences: BLEU 100.00" in said
    assert "x, en to de: test set of 8 sentences: BLEU 0." in said
    assert "x, zh to en: test set of 2 sentences" in said and "tok:zh" in said
    assert "x: mean of 4 directions, 20 sentences: BLEU 5" in said
    (tmp_path / "tags").write_text("<2en>\n")
    assert score(tmp_path, translations, references, "--tags", str(tmp_path / "tags")) == 1
    assert "must have the same, even number" in capsys.readouterr().err


def test_a_lost_sentence_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(tmp_path, GERMAN[:-1], GERMAN) == 1
    error = capsys.readouterr().err
    assert error.startswith("score_translations.py: error: ") and "has translations of 29 sentences" in error
    assert not (tmp_path / "hypotheses").exists()
