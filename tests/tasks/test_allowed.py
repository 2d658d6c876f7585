"""``--mhe-allowed``: which tokens are read from files and texts, and that commands find no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mhe_fairseq.cli.data import read_dictionary
from mhe_fairseq.errors import MHEError
from mhe_fairseq.tasks.allowed import read_allowed
from tests.commands import ALL_SENTENCES, PAIR, PLUGIN
from tests.helpers import TOY_SIZES, run_command
from tests.many_languages import FEW, LANGUAGES, MULTI
from tests.tasks.test_commands import run_all


def words_of(text: Path) -> set[str]:
    return set(text.read_text().split())


@pytest.mark.parametrize(
    ("lang", "files"), [("aa", ["aa-bb.aa", "aa-cc.aa"]), ("bb", ["aa-bb.bb"]), ("cc", ["aa-cc.cc"])]
)
def test_tokens_of_a_language(lang: str, files: list[str], many_data: Path) -> None:
    dictionary = read_dictionary(many_data / "dict.aa.txt", ["__aa__", "__bb__"])
    allowed = read_allowed("lang", dictionary, lang, str(many_data))
    found = {dictionary[int(token)] for token in allowed.mask.nonzero()}
    expected = set().union(*(words_of(many_data.parent / "text" / f"train.{file}") for file in files))
    assert found == expected | {"</s>"}
    assert allowed.count == len(found) and allowed.others == len(expected)
    assert allowed.name == f"those of the training text in {lang}"


def test_of_some_pairs(many_data: Path) -> None:
    dictionary = read_dictionary(many_data / "dict.aa.txt")
    few, all_of_it = (
        read_allowed("lang", dictionary, "aa", str(many_data), sources=sources) for sources in (["cc"], None)
    )
    words = words_of(many_data.parent / "text" / "train.aa-cc.aa")
    assert {dictionary[int(token)] for token in few.mask.nonzero()} == words | {"</s>"}
    assert few.count < all_of_it.count


def test_a_file(many_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dictionary = read_dictionary(many_data / "dict.aa.txt")
    file = tmp_path / "tokens"
    # A token, a line of a dictionary, padding, which is never allowed, and strange ones.
    file.write_text("ba\nBE 17\nbax 3 #fairseq:overwrite\n<unk>\n<pad>\n\nhello\nwide world\n")
    with caplog.at_level("INFO", logger="mhe_fairseq.tasks.allowed"):
        allowed = read_allowed(str(file), dictionary, "bb", str(many_data))
    assert {dictionary[int(token)] for token in allowed.mask.nonzero()} == {
        "ba",
        "BE",
        "bax",
        "<unk>",
        "</s>",
    }
    assert "2 of 7 tokens in" in caplog.text and "not in the dictionary, such as 'hello'" in caplog.text
    # A dictionary is a list of its tokens.
    whole = read_allowed(str(many_data / "dict.aa.txt"), dictionary, "bb", str(many_data))
    own = torch.arange(len(dictionary)) >= dictionary.nspecial
    assert torch.equal(whole.mask[4:], own[4:]) and whole.mask[:4].tolist() == [False, False, True, False]


def test_bad_input(many_data: Path, tmp_path: Path) -> None:
    dictionary = read_dictionary(many_data / "dict.aa.txt")
    with pytest.raises(MHEError, match="the language dd has no training text in .*data-bin"):
        read_allowed("lang", dictionary, "dd", str(many_data))
    with pytest.raises(MHEError, match=r"the language aa has no training text .*dev\.\*-aa\.aa\.idx"):
        read_allowed("lang", dictionary, "aa", str(many_data), train="dev")
    with pytest.raises(MHEError, match="there is no file .*none for --mhe-allowed"):
        read_allowed(str(tmp_path / "none"), dictionary, "aa", str(many_data))
    (tmp_path / "strange").write_text("hello\nworld\n")
    with pytest.raises(MHEError, match=r"has no token of the dictionary \(2 lines, such as 'hello'\)"):
        read_allowed(str(tmp_path / "strange"), dictionary, "aa", str(many_data))
    (tmp_path / "few").write_text("ba 1\n")
    with pytest.raises(MHEError, match=r"has token \d+, the dictionary has 0\.\.4 only"):
        read_allowed("lang", read_dictionary(tmp_path / "few"), "aa", str(many_data))


def said(output: list[str]) -> set[str]:
    """All words of the hypotheses."""
    return {word for line in output if line.startswith("H-") for word in line.split("\t")[2].split()}


@pytest.mark.slow
def test_commands(
    many_models: dict[str, Path],
    many_data: Path,
    stock_models: dict[str, Path],
    toy_data: Path,
    tmp_path: Path,
) -> None:
    """Of models that know little of the language: every head, with prefixes, and both tasks."""
    text = many_data.parent / "text"
    words = words_of(text / "train.aa-cc.cc")
    file = tmp_path / "tokens"
    half = set(sorted(words)[::2])
    file.write_text("\n".join(half) + "\n")
    asked = [*PLUGIN, "--cpu", "--num-workers", "0", "--max-len-b", "10", "--nbest", "5"]
    many = [str(many_data), *asked, *LANGUAGES, "--task", f"mhe_{MULTI}", "-s", "aa", "-t", "cc"]
    lines = [
        ["generate", "", *many, "--path", str(many_models[head]), *allowed]
        for head in ("cascade", "product", "sampling")
        for allowed in (["--mhe-allowed", "lang"], ["--mhe-allowed", str(file)], [])
    ]
    spoken = "\n".join((text / "test.aa-cc.aa").read_text().splitlines()[:3]) + "\n"
    lines.append(
        ["interactive", spoken, *many, "--path", str(many_models["cascade"]), "--mhe-allowed", "lang"]
    )
    lines += [
        ["generate", "", str(toy_data), *asked, *PAIR, *ALL_SENTENCES, "--task", "mhe_translation"]
        + ["--path", str(stock_models["transformer"]), "--mhe-allowed", "lang"]
    ]
    outputs, log = run_all(lines, tmp_path)
    for first in (0, 3, 6):
        by_text, by_file, free = outputs[first : first + 3]
        assert said(by_text) <= words and said(by_file) <= half and not said(free) <= half
        for output in (by_text, by_file):
            assert sum(line.startswith("H-") for line in output) == 5 * FEW["test"]
    assert said(outputs[9]) <= words and sum(line.startswith("H-") for line in outputs[9]) == 15
    assert said(outputs[10]) <= words_of(toy_data.parent / "text" / "train.tgt")
    assert sum(line.startswith("H-") for line in outputs[10]) == 5 * TOY_SIZES["test"]
    size = len(read_dictionary(many_data / "dict.aa.txt")) + 3
    told_text, told_file = (f"of {size} tokens {len(kept) + 1} are searched, those" for kept in (words, half))
    assert log.count(f"mhe: compact search; {told_text} of the training text in cc") == 4
    assert log.count(f"mhe: compact search; {told_file} in {file}") == 3


@pytest.mark.slow
def test_a_language_without_text_is_refused_by_name(
    many_models: dict[str, Path], many_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(many_data, tmp_path / "data"))
    for file in data.glob("train.aa-cc.cc.*"):
        file.unlink()
    done = run_command(
        ["fairseq-generate", str(data), *PLUGIN, *LANGUAGES, "--task", f"mhe_{MULTI}", "-s", "aa", "-t", "cc"]
        + ["--path", str(many_models["cascade"]), "--cpu", "--mhe-allowed", "lang"],
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and last.startswith(
        f"mhe_fairseq: error: --mhe-allowed lang: the language cc has no training text in {data}"
    )
