"""scripts/study/translations.py: order, scores and significance of translations."""

from __future__ import annotations

from pathlib import Path

import pytest
import sacrebleu

from scripts.study.translations import (
    BESIDE,
    TranslationError,
    against,
    bootstrap,
    read_translations,
    score,
)

REFERENCES = [
    f"der {word} steht im Garten hinter dem Haus" for word in ("Baum", "Tisch", "Hund", "Mann")
] * 20


def write(folder: Path, lines: list[str]) -> Path:
    path = folder / "test.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_translations_come_in_the_order_of_the_set(tmp_path: Path) -> None:
    # U+2028 is no end of a line, and a translation may be empty.
    lines = [
        "INFO | H-5 is no line of ours",
        "S-1\tsource",
        "H-1\t-0.5\tzwei\u2028mehr",
        "H-0\t-0.1\teins",
        "H-2\t-9\t",
    ]
    assert read_translations(write(tmp_path, lines), 3) == ["eins", "zwei\u2028mehr", ""]


@pytest.mark.parametrize("lines", [["H-0\t-1\ta"], ["H-0\t-1\ta", "H-2\t-1\tb"]])
def test_missing_translations_are_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(TranslationError, match=f"of {len(lines)} sentences, the test set has"):
        read_translations(write(tmp_path, lines), len(lines) + 1)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TranslationError, match="there are no translations"):
        read_translations(tmp_path / "none", 1)


def test_scores_are_sacrebleus() -> None:
    shorter = [line.removesuffix(" hinter dem Haus") for line in REFERENCES]
    found = score(shorter, REFERENCES)
    assert found.bleu == sacrebleu.corpus_bleu(shorter, [REFERENCES]).score
    assert found.chrf == sacrebleu.corpus_chrf(shorter, [REFERENCES]).score
    assert found.length == 5 / 8 and found.brevity == pytest.approx(2.718281828 ** (1 - 8 / 5))
    assert "tok:13a" in found.signatures["BLEU"] and "nc:6" in found.signatures["chrF2"]
    assert score(REFERENCES, REFERENCES).bleu == pytest.approx(100)


def test_bootstrap_tells_a_difference_from_none() -> None:
    worse = [line.replace("Garten", "Wald") for line in REFERENCES]
    found = bootstrap(REFERENCES, worse, REFERENCES, samples=200)
    assert set(found) == {"BLEU", "chrF2"} and max(found.values()) < 0.05
    # As good in sum: what one has wrong in one half, the other has in the other.
    half = len(REFERENCES) // 2
    first, second = worse[:half] + REFERENCES[half:], REFERENCES[:half] + worse[half:]
    assert bootstrap(first, second, REFERENCES, samples=200)["BLEU"] > 0.1


def test_a_model_against_another() -> None:
    worse = [[line.replace("Haus", "Bau") for line in REFERENCES], REFERENCES]
    row, scores = against(worse, [REFERENCES, REFERENCES], REFERENCES)
    first = score(worse[0], REFERENCES)
    assert scores == [first, score(REFERENCES, REFERENCES)] and first.bleu < 95
    assert row["bleu"] == pytest.approx([(first.bleu + 100) / 2, (100 - first.bleu) / 2])
    assert row["behind"] == pytest.approx((first.bleu - 100) / 2)
    chances = [float(each) for each in row["p"].split(", ")]
    assert chances[0] < 0.01 and chances[1] == 1
    alone, _ = against(worse[:1], None, REFERENCES)
    assert alone == {"bleu": first.bleu, "behind": None, "p": None, "chrf": first.chrf}
    assert {column["key"] for column in BESIDE} == set(alone)
