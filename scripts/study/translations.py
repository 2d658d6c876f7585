"""What fairseq-generate wrote, scored with sacrebleu."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import sacrebleu
from sacrebleu.significance import PairedTest

from scripts.common.seeds import spread

#: Columns of a record, of what ``against`` returns.
BESIDE = [
    {"key": "bleu", "title": "BLEU", "format": "{:.2f}"},
    {"key": "behind", "title": "to the softmax", "format": "{:+.2f}"},
    {"key": "p", "title": "p of each seed"},
    {"key": "chrf", "title": "chrF2", "format": "{:.2f}"},
]


class TranslationError(Exception):
    """Bad input, said in one sentence."""


@dataclass(frozen=True)
class Scores:
    """Of a test set.

    Attributes:
        bleu, chrf: in percent.
        brevity: BLEU's penalty; 1 where translations are as long as references.
        length: of the translations over that of the references, in words.
        signatures: sacrebleu's, of both metrics.
    """

    bleu: float
    chrf: float
    brevity: float
    length: float
    signatures: dict[str, str]


def read_translations(path: Path, count: int) -> list[str]:
    """The translations of a test set in the order of the set.

    fairseq translates like long sentences together; "H-17 TAB score TAB text" is sentence 17 of the set.

    Raises:
        TranslationError: no such file, or not one translation of each of ``count`` sentences.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise TranslationError(f"there are no translations {path}") from None
    found: dict[int, str] = {}
    for line in text.split("\n"):
        if line.startswith("H-"):
            number, _, translation = line[2:].split("\t", 2)
            found[int(number)] = translation
    if sorted(found) != list(range(count)):
        raise TranslationError(f"{path} has translations of {len(found)} sentences, the test set has {count}")
    return [found[number] for number in range(count)]


def score(
    translations: list[str], references: list[str], lowercase: bool = False, tokenize: str = "13a"
) -> Scores:
    """BLEU and chrF2 of detokenised text.

    Args:
        translations, references: sentence by sentence.
        lowercase: for BLEU and chrF2 to be blind to case.
        tokenize: how BLEU tells words apart, a name of sacrebleu's.
    """
    bleu = sacrebleu.BLEU(lowercase=lowercase, tokenize=tokenize)
    chrf = sacrebleu.CHRF(lowercase=lowercase)
    result = bleu.corpus_score(translations, [references])
    return Scores(
        bleu=result.score,
        chrf=chrf.corpus_score(translations, [references]).score,
        brevity=result.bp,
        length=result.sys_len / max(1, result.ref_len),
        signatures={"BLEU": str(bleu.get_signature()), "chrF2": str(chrf.get_signature())},
    )


def bootstrap(
    baseline: list[str], translations: list[str], references: list[str], samples: int = 1000
) -> dict[str, float]:
    """Paired bootstrap resampling: p-values of the differences in BLEU and in chrF2."""
    if baseline == translations:
        # sacrebleu counts differences above the one found: of none it would say that chance makes none.
        return {"BLEU": 1.0, "chrF2": 1.0}
    systems = [("baseline", baseline), ("this", translations)]
    metrics = {
        "BLEU": sacrebleu.BLEU(references=[references]),
        "chrF2": sacrebleu.CHRF(references=[references]),
    }
    test = PairedTest(systems, metrics, references=None, test_type="bs", n_samples=samples)
    found = test()[1]
    return {name: float(found[name][1].p_value) for name in found if name != "System"}


def against(
    lines: list[list[str]], base: list[list[str]] | None, references: list[str]
) -> tuple[dict[str, Any], list[Scores]]:
    """What a record has of the translations of one model.

    Args:
        lines: translations of the test set, of each seed.
        base: those of the model that it is compared with, of the same seeds; None: it is that model.
        references: of the test set.

    Returns:
        ``bleu``, ``chrf``, ``behind`` (mean difference in BLEU) and ``p`` (of each seed, that chance makes so
        large a difference), as in ``BESIDE``; and the scores of each seed.
    """
    scores = [score(each, references) for each in lines]
    behind, chances = None, None
    if base is not None:
        pairs = zip(scores, base, strict=True)
        behind = fmean(own.bleu - score(other, references).bleu for own, other in pairs)
        both = zip(base, lines, strict=True)
        chances = ", ".join(f"{bootstrap(*pair, references)['BLEU']:.3f}" for pair in both)
    row = {
        "bleu": spread([each.bleu for each in scores]), "behind": behind, "p": chances,
        "chrf": spread([each.chrf for each in scores]),
    }  # fmt: skip
    return row, scores
