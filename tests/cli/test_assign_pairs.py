"""`mhe assign --lang-pairs`: one codebook for many languages."""

from __future__ import annotations

import re
import shutil
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairseq.data.multilingual.sampling_method import temperature_sampling

from mhe_fairseq.cli.assign_text import ManyTexts, weights
from mhe_fairseq.cli.data import read_dictionary
from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook, symbols_fingerprint
from tests.many_languages import FEW, PAIRS

LANGS = ["--lang-pairs", ",".join(PAIRS), "--langs", "aa,bb,cc"]


def assign(data: Path, output: Path, *more: str) -> int:
    return main(["assign", "--data", str(data), "--lengths", "10,14", "-o", str(output), *more])


def symbols_of(data: Path, *added: str) -> list[str]:
    return [*read_dictionary(data / "dict.aa.txt").symbols, *added]


def test_groups_are_of_languages(many_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "codes"
    drawn = ["--sampling-method", "temperature", "--sampling-temperature", "5"]
    assert assign(many_data, output, *LANGS, *drawn) == 0
    shown, book = capsys.readouterr().out, Codebook.load(output)
    symbols = symbols_of(many_data, "__aa__", "__bb__", "__cc__")
    assert len(book) == len(symbols) and book.dictionary == symbols_fingerprint(symbols)
    assert ", drawn at temperature 5, seed 1" in shown
    # Words of one language stand together, but for those that no training text has, and a few more.
    kinds = [
        {"bb" if word.isupper() else "cc" if word.endswith("x") else "aa" for word in words}
        for row in book.token_of_slot.view(10, 14)
        if (words := [symbols[token] for token in row.tolist() if token >= 0 and symbols[token].isalpha()])
    ]
    assert sum(len(kind) == 1 for kind in kinds) >= 6
    # What the report says of each language's groups.
    group = (book.slots // 14).tolist()
    for lang, pair in (("aa", "aa-bb"), ("bb", "aa-bb"), ("cc", "aa-cc")):
        text = (many_data.parent / "text" / f"train.{pair}.{lang}").read_text()
        count = Counter(text.split()) + Counter({"</s>": text.count("\n")})
        by_group: Counter[int] = Counter()
        for word, often in count.items():
            by_group[group[symbols.index(word)]] += often
        most, covered = 0, 0
        for _, often in by_group.most_common():
            most, covered = most + 1, covered + often
            if covered >= 0.99 * count.total():
                break
        assert (
            f"  {lang}: {count.total():,} tokens of text, {len(count)} different, in {len(by_group)} groups; "
            f"99% of the text in {most}\n"
        ) in shown
    # The same from --lang-dict; and mBART's way of writing languages.
    (tmp_path / "langs").write_text("aa\nbb\ncc\n")
    again = tmp_path / "again"
    assert assign(many_data, again, *LANGS[:2], "--lang-dict", str(tmp_path / "langs"), *drawn) == 0
    assert Codebook.load(again) == book
    assert assign(many_data, again, *LANGS, "--lang-tok-style", "mbart", "--by", "frequency") == 0
    found = Codebook.load(again).dictionary
    assert found == symbols_fingerprint(symbols_of(many_data, "[aa]", "[bb]", "[cc]", "<mask>"))


def test_a_language_that_is_only_a_source_is_clustered_too(
    many_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ["--lang-pairs", "aa-cc,bb-aa"]
    assert assign(many_data, tmp_path / "codes", *pairs) == 0
    assert "tokens of 2 target sides and 1 source sides" in capsys.readouterr().out
    assert assign(many_data, tmp_path / "codes", *pairs, "--target-only") == 0
    assert "tokens of 2 target sides, seed 1" in capsys.readouterr().out


def flags(data: Path, **more: Any) -> Namespace:
    values = dict.fromkeys(("target_lang", "lang_dict", "fixed_dictionary", "sampling_method"))
    return Namespace(
        **{
            **values, "data": str(data), "lang_pairs": ",".join(PAIRS), "langs": None, "add_symbol": [],
            "lang_tok_style": "multilingual", "langtoks_specs": "main", "sampling_temperature": None,
            "target_only": False, **more,
        }
    )  # fmt: skip


def test_text_counts_as_often_as_training_draws_it(many_data: Path) -> None:
    text = ManyTexts.of(flags(many_data, sampling_method="temperature", sampling_temperature=3.0))
    size = len(text.dictionary)
    counts = text.count(size, lambda *_: None)
    sizes = [200, 200, FEW["train"]]
    drawn = np.array(temperature_sampling(sizes, 3.0)) / sizes
    index, words = text.dictionary.index, text.by_language
    expected = words["bb"] + words["aa"] + drawn[2] / drawn[0] * words["cc"]
    assert np.abs(counts - expected).max() <= 0.5 and counts[index("bax")] > 1.5 * words["cc"][index("bax")]
    # All are drawn alike, each sentence once; or each pair as often as the others.
    assert weights(sizes, "concat", 1.5) == weights(sizes, "RoundRobin", 1.5) == [1.0] * 3
    assert weights(sizes, "temperature", 1.0) == pytest.approx([1.0] * 3)
    assert weights(sizes, "uniform", 1.5) == pytest.approx([1.0, 1.0, 200 / FEW["train"]])
    assert weights(sizes, "temperature", 3.0) == pytest.approx(drawn / drawn.min())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--lang-pairs", "aa-bb,bb-cc"], "has no text of the pair bb-cc: neither train.bb-cc.bb.idx nor"),
        ([*LANGS[:3], "aa,cc"], "the pair aa-bb has the language 'bb', which is not one of aa, cc"),
        (["--langs", "aa,bb", "--target-lang", "bb"], "--langs is for --lang-pairs, which is missing"),
        ([*LANGS, "--target-lang", "bb"], "--target-lang bb is for one pair, and --lang-pairs aa-bb,bb-aa"),
        ([*LANGS, "--sampling-temperature", "2"], "--sampling-temperature 2.0 is for --sampling-method temp"),
        (
            [*LANGS, "--sampling-method", "temperature", "--sampling-temperature", "0"],
            "--sampling-temperature must be a number above 0, got 0.0",
        ),
        ([*LANGS, "--add-symbol", "__aa__"], "--add-symbol __aa__: the dictionary"),
        ([*LANGS, "--fixed-dictionary", "no/dict"], "there is no dictionary no/dict"),
    ],
)
def test_bad_input(
    more: list[str], sentence: str, many_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assign(many_data, tmp_path / "codes", *more) == 1
    said = capsys.readouterr().err
    assert sentence in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "codes").exists()


def test_dictionaries_that_differ(
    many_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(many_data, tmp_path / "data"))
    lines = (data / "dict.cc.txt").read_text().splitlines()
    (data / "dict.cc.txt").write_text("\n".join(lines[:-1]) + "\n")
    assert assign(data, tmp_path / "codes", *LANGS) == 1
    assert re.search(
        r"the dictionaries of the target languages aa and cc differ \(\d+ and \d+ symb",
        capsys.readouterr().err,
    )


def test_plan_counts_the_languages(many_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = len(symbols_of(many_data))
    line = ["plan", "--dict", str(many_data / "dict.aa.txt"), "--dim", "64", "--device", "cpu"]
    assert main([*line, "--langs", "aa,bb,cc"]) == 0
    assert f"{size + 3} tokens, d = 64" in capsys.readouterr().out
