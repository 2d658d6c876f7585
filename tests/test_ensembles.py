"""``--path one.pt:other.pt``: models of different heads, codebooks and kinds translate together."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from tests.commands import CRITERION, PAIR, PLUGIN, hypotheses, train_line
from tests.masked_lm import CPU, Ended, run_lines

pytestmark = pytest.mark.slow

STOCK = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
#: Name -> architecture, flags. The codebooks of heads have other lengths.
MODELS = {
    "stock": ("transformer_tiny", [*STOCK, "--share-all-embeddings"]),
    "cascade": ("mhe_transformer_tiny", [*CRITERION, "--share-all-embeddings"]),
    "product": ("mhe_transformer_tiny", [*CRITERION, "--mhe-head", "product", "--mhe-lengths", "6,16"]),
    "three": ("mhe_transformer_tiny", [*CRITERION, "--mhe-lengths", "5,5,4", "--seed", "2"]),
}
PAIRS = [("stock", "cascade"), ("cascade", "stock"), ("product", "cascade"), ("three", "cascade")]


@pytest.fixture(scope="module")
def models(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``NAME/checkpoint_last.pt`` of each model."""
    folder = tmp_path_factory.mktemp("ensembles")
    short = ["--max-update", "16", "--no-epoch-checkpoints", "--disable-validation"]
    lines = {
        name: ["train", *train_line(toy_data, folder / name, *flags, *short, arch=arch)[1:]]
        for name, (arch, flags) in MODELS.items()
    }
    for ended in run_lines(folder / "logs", lines).values():
        assert ended.status == 0, ended.said[-3000:]
    return folder


def line(data: Path, models: Path, names: tuple[str, ...], *flags: str) -> list[str]:
    path = ":".join(str(models / name / "checkpoint_last.pt") for name in names)
    long = ["--max-len-a", "1.5", "--max-len-b", "5", "--beam", "3"]
    every = ["--required-batch-size-multiple", "1"]
    return ["generate", str(data), *PLUGIN, *PAIR, "--path", path, *CPU, *every, *long, *flags]


def token_scores(ended: Ended) -> dict[str, list[float]]:
    """Sentence -> the scores of its tokens."""
    assert ended.status == 0, ended.said[-3000:]
    lines = [text.split("\t") for text in ended.said.splitlines() if text.startswith("P-")]
    assert len(lines) == 30
    return {name: [float(score) for score in scores.split()] for name, scores in lines}


def test_they_score_by_their_mean_probability(models: Path, toy_data: Path, tmp_path: Path) -> None:
    """Every token of the references, in both orders; from what each model says alone."""
    lines = {name: line(toy_data, models, (name,), "--score-reference") for name in MODELS}
    lines |= {" ".join(pair): line(toy_data, models, pair, "--score-reference") for pair in PAIRS}
    found = {name: token_scores(ended) for name, ended in run_lines(tmp_path, lines).items()}
    for one, other in PAIRS:
        for sentence, scores in found[f"{one} {other}"].items():
            alone = zip(found[one][sentence], found[other][sentence], strict=True)
            means = [math.log2((2**a + 2**b) / 2) for a, b in alone]
            # Four digits are printed, of base 2.
            assert scores == pytest.approx(means, abs=2e-4)


def test_they_find_what_the_wide_search_finds(models: Path, toy_data: Path, tmp_path: Path) -> None:
    lines = {}
    for pair in PAIRS:
        for task in ("translation", "mhe_translation"):
            lines[f"{' '.join(pair)} {task}"] = line(toy_data, models, pair, "--task", task)
    ended = run_lines(tmp_path, lines)
    said = {name: each.said for name, each in ended.items()}
    assert not any(each.status for each in ended.values()), said
    for pair in PAIRS:
        name = " ".join(pair)
        wide, ours = (hypotheses(said[f"{name} {task}"]) for task in ("translation", "mhe_translation"))
        check_alike(ours, wide)
        assert ("mhe: compact search" in said[f"{name} mhe_translation"]) == ("stock" not in pair)
        if (turned := " ".join(reversed(pair))) in {" ".join(other) for other in PAIRS}:
            check_alike(hypotheses(said[f"{turned} mhe_translation"]), wide)
    assert len({str(hypotheses(each)) for each in said.values()}) > len(PAIRS) // 2, "models that all agree"


def check_alike(ours: dict[int, tuple[float, str]], wide: dict[int, tuple[float, str]]) -> None:
    assert ours.keys() == wide.keys() and len(wide) == 30
    for number, (score, text) in wide.items():
        assert ours[number][1] == text
        assert ours[number][0] == pytest.approx(score, abs=2e-4)


@pytest.mark.parametrize("kind", ["larger", "turned"])
def test_models_of_other_dictionaries(kind: str, models: Path, toy_data: Path, tmp_path: Path) -> None:
    """One word more, or two in each other's place."""
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    for path in data.glob("dict.*.txt"):
        words = path.read_text().splitlines()
        words = [*words, "more 1"] if kind == "larger" else [words[1], words[0], *words[2:]]
        path.write_text("\n".join(words) + "\n")
    lines = {
        " ".join(pair): line(data, models, pair) for pair in (("cascade", "stock"), ("stock", "cascade"))
    }
    for name, ended in run_lines(tmp_path / "logs", lines).items():
        assert ended.status == 1 and "Traceback" not in ended.said, ended.said[-3000:]
        expected = "tokens" if kind == "larger" else "the checkpoint is for another dictionary (fingerprint "
        assert ended.last.startswith("mhe_fairseq: error: ") and expected in ended.last, name
        assert "use the dictionary" in ended.last
