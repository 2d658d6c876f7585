"""scripts/study/study_config.py: a study is read whole or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.study.study_config import StudyError, read_study
from tests.helpers import REPO

GOOD = """
baseline = "b"
languages = ["en", "de"]
vocab_size = 100
updates = 4
seeds = [1, 2]
every = 2
train = "--dropout   0.1 --adam-betas '(0.9, 0.98)'"
generate = "--beam 2"
[flags]
ours = "--arch mhe_transformer"
[variants.a]
train = "{ours} --mhe-codebook {codes}"
assign = "--by cluster"
about = "a remark"
[variants.b]
train = "{ours}"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_a_study_is_read(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, GOOD))
    assert list(study.variants) == ["b", "a"], "the baseline comes first"
    assert study.train == "--dropout 0.1 --adam-betas '(0.9, 0.98)'"
    assert study.languages == ("en", "de") and study.seeds == (1, 2)
    a = study.variants["a"]
    assert (a.train, a.assign) == ("--arch mhe_transformer --mhe-codebook '{codes}'", "--by cluster")
    assert (a.about, study.variants["b"].assign) == ("a remark", "")


def test_the_study_that_ships_is_whole() -> None:
    study = read_study(REPO / "examples" / "translation" / "study.toml")
    assert study.baseline == "softmax" and len(study.variants) > 10


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('baseline = "b"', 'baseline = "c"', "the baseline c is none of a, b"),
        ('baseline = "b"', "", "missing: baseline"),
        ("[flags]", "[flag]", "unknown: flag"),
        ("updates = 4", 'updates = "4"', "updates must be of type int, got '4'"),
        ("updates = 4", "updates = true", "updates must be of type int, got True"),
        ("updates = 4", "updates = 0", "updates must be at least 1, got 0"),
        ('["en", "de"]', '["en"]', "languages must be two"),
        ("[1, 2]", "[1, 1]", "seeds must be different whole numbers; got [1, 1]"),
        ("[1, 2]", "[]", "seeds must be different whole numbers; got []"),
        ('assign = "--by cluster"', "", "variant a: `assign` and {codes} in `train` go together"),
        ('train = "{ours}"', 'train = "{our}"', "variant b uses {our}; there are codes, ours"),
        ('train = "{ours}"', 'trian = "{ours}"', "variant b must have `train`"),
        ('baseline = "b"', "baseline =", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(StudyError) as error:
        read_study(write(tmp_path, GOOD.replace(old, new)))
    assert said in str(error.value)


def test_a_missing_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no study"):
        read_study(tmp_path / "none.toml")
