"""`mhe convert` to more languages, and fairseq's own commands on what it writes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook
from tests import bart
from tests.commands import generate, hypotheses, logged
from tests.helpers import REPO, TOY_TARGET, run_command
from tests.many_languages import LANGS, LANGUAGES, PAIRS, make_many_data
from tests.masked_lm import run_lines

pytestmark = pytest.mark.slow

#: With a language more.
MORE_LANGS, MORE_PAIRS = [*LANGS, "dd"], [*PAIRS, "aa-dd"]
MORE = ["--langs", ",".join(MORE_LANGS), "--lang-pairs", ",".join(MORE_PAIRS)]


@pytest.fixture(scope="module")
def more_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's text and that of a pair more, with one dictionary."""
    return make_many_data(tmp_path_factory.mktemp("more"), ("cc", "dd"))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command says that must fail."""
    capsys.readouterr()
    assert main(["convert", *map(str, words)]) == 1
    return capsys.readouterr().err.rstrip().splitlines()[-1]


@pytest.mark.parametrize("head", ["cascade", "product", "sampling"])
def test_a_language_more(
    head: str,
    many_models: dict[str, Path],
    many_data: Path,
    more_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = many_models[head], tmp_path / "grown.pt"
    capsys.readouterr()
    words = ["convert", str(source), "--data", str(more_data), *MORE, "-o", str(output)]
    assert main(words) == 0
    said = capsys.readouterr().out
    sizes = re.search(r"(\d+) symbols, now (\d+): (\d+) stay, (\d+) new", said)
    assert sizes is not None
    old, new, stay, added = map(int, sizes.groups())
    assert stay + added == new and stay >= old - 8  # but padding
    state, was = (torch.load(path, weights_only=True) for path in (output, source))
    options = vars(state["cfg"]["model"])
    assert (options["langs"], options["lang_pairs"]) == (MORE_LANGS, MORE_PAIRS)
    book = Codebook.load(tmp_path / "grown.codes")
    assert len(book) == new == len(state["model"]["decoder.embed_tokens.weight"])
    # A language's token keeps its row, though words have come in between.
    rows, old_rows = (each["model"]["decoder.embed_tokens.weight"] for each in (state, was))
    assert torch.equal(rows[new - 4 : new - 1], old_rows[old - 3 :])

    # At once it translates what it did, and the same task translates the new pair.
    flags = ["--langs", ",".join(MORE_LANGS), "--lang-pairs", ",".join(MORE_PAIRS), *LANGUAGES[4:]]
    for pair in ("aa-bb", "aa-dd"):
        first, second = pair.split("-")
        task = [
            "--task",
            "mhe_translation_multi_simple_epoch",
            "--source-lang",
            first,
            "--target-lang",
            second,
        ]
        done = generate(more_data, output, *task, *flags, "--beam", "2")
        assert len(hypotheses(done.stdout)) == (30 if second == "bb" else 20)

    line = shlex.split(said.splitlines()[-1])
    assert line[line.index("--langs") + 1] == ",".join(MORE_LANGS)
    assert line[line.index("--lang-pairs") + 1] == ",".join(MORE_PAIRS)
    line[line.index("--user-dir") + 1] = str(REPO / "mhe_fairseq")
    more = ["--cpu", "--num-workers", "0", "--log-format", "json", "--log-interval", "1"]
    done = run_command([*line, *more], cwd=tmp_path)
    assert len(logged(done.stdout + done.stderr, "nll_loss")) == 6


def test_a_language_more_of_mbart(toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its token stands before ``<mask>``, which keeps its row."""
    mono, langs = bart.make_mono_data(toy_data, tmp_path / "mono"), f"{bart.LANGS},xx"
    folder, output = tmp_path / "checkpoints", tmp_path / "grown.pt"
    cascade = ["--mhe-head", "cascade"]
    line = bart.train(mono, folder, *bart.MULTILINGUAL, *cascade, arch="mhe_mbart_base", updates=4)
    (ended,) = run_lines(tmp_path, {"train": line}).values()
    assert ended.status == 0, ended.said[-3000:]
    shutil.copytree(mono / TOY_TARGET, mono / "xx")
    source = folder / "checkpoint_last.pt"
    capsys.readouterr()
    assert main(["convert", str(source), "--data", str(mono), "--langs", langs, "-o", str(output)]) == 0
    said = capsys.readouterr().out
    assert re.search(r" symbols, now \d+: \d+ stay, 1 new \(0 made of known pieces, 1 not\), 0 gone", said)
    state, was = (torch.load(path, weights_only=True) for path in (output, source))
    rows, old_rows = (each["model"]["decoder.embed_tokens.weight"] for each in (state, was))
    assert len(rows) == len(old_rows) + 1 == len(state["model"]["decoder.head.codebook_slots"])
    assert torch.equal(rows[-1], old_rows[-1]) and torch.equal(rows[:-2], old_rows[:-1])
    task = [langs if word == bart.LANGS else word for word in bart.MULTILINGUAL]
    (ended,) = run_lines(tmp_path, {"validate": bart.validate(mono, output, *task)}).values()
    assert ended.status == 0, ended.said[-3000:]


def test_bad_input_is_told_in_a_sentence(
    many_models: dict[str, Path],
    more_data: Path,
    stock_models: dict[str, Path],
    toy_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = ["--data", more_data, "-o", tmp_path / "x.pt"]
    source = many_models["cascade"]
    said = refused(capsys, source, *to, "--lang-pairs", "aa-bb,aa-dd")
    assert "'dd', which is not one of aa, bb, cc" in said
    assert "--lang-dict" in refused(capsys, source, *to, "--langs", "aa,bb", "--lang-dict", "langs.txt")
    said = refused(capsys, source, *to, "--langs", "aa,bb,cc,ee", "--lang-pairs", "aa-bb,aa-ee")
    assert "dict.ee.txt" in said
    said = refused(capsys, source, *to, "--head", "softmax", "--langs", "aa,bb")
    assert "--langs aa,bb is for another dictionary" in said and "convert twice" in said
    other = stock_models["transformer"]
    said = refused(capsys, other, "--data", toy_data, "-o", tmp_path / "x.pt", "--langs", "aa,bb")
    assert "--langs aa,bb is for a task of many languages" in said and "--task translation" in said
    assert not list(tmp_path.iterdir())
