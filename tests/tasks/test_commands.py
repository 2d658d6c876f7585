"""``--task mhe_translation`` under fairseq's own commands, beside ``--task translation``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import ALL_SENTENCES, CRITERION, PAIR, PLUGIN, generate, hypotheses, logged, train
from tests.helpers import TOY_SIZES, run_command

SHORT = ["--max-update", "24", "--no-epoch-checkpoints"]
BOTH = ("mhe_translation", "translation")


@pytest.fixture(scope="module")
def models(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A product head trained with one task, and a cascade trained with the other."""
    folder = tmp_path_factory.mktemp("models")
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_a": 1.5, "max_len_b": 5}']
    done = train(
        toy_data, folder / "product", *CRITERION, *SHORT, "--task", "mhe_translation", *bleu,
        "--mhe-head", "product", "--mhe-mixtures", "2", "--validate-interval", "1",
    )  # fmt: skip
    (folder / "product" / "log").write_text(done.stdout + done.stderr)
    train(toy_data, folder / "cascade", *CRITERION, *SHORT, "--task", "translation", "--mhe-head", "cascade")
    return {name: folder / name / "checkpoint_best.pt" for name in ("product", "cascade")}


def run_all(lines: list[list[str]], folder: Path) -> tuple[list[list[str]], str]:
    """What each command, [name, what it reads, *arguments], printed of its results, and what all logged.
    All of it is kept in ``folder``, too."""
    marks = ("S-", "T-", "H-", "D-", "P-", "A-", "Generate ")
    kept, said = [], ""
    for name, source, *arguments in lines:
        done = run_command([f"fairseq-{name}", *arguments], stdin=source)
        kept.append([line for line in done.stdout.splitlines() if line.startswith(marks)])
        said += done.stdout + done.stderr
    (folder / "said").write_text(said)
    return kept, said


def _read(line: str) -> list[str | float]:
    """Words as they are, numbers as numbers."""
    words: list[str | float] = []
    for word in line.split():
        try:
            words.append(float(word))
        except ValueError:
            words.append(word)
    return words


def check_same(mine: list[str], theirs: list[str], about: object) -> None:
    """The same lines; two ways of adding up round to neighbouring digits, now and then."""
    assert len(mine) == len(theirs), about
    for a, b in zip(mine, theirs, strict=True):
        words = list(zip(_read(a), _read(b), strict=True))
        assert all(x == (y if isinstance(y, str) else pytest.approx(y, abs=2e-4)) for x, y in words), (a, b)


@pytest.mark.slow
def test_validation_translates_compactly_and_says_so_once(models: dict[str, Path]) -> None:
    said = (models["product"].parent / "log").read_text()
    assert said.count("mhe: compact search") == 1
    assert said.count("V-wide search") == 0
    scores = logged(said, "valid_bleu", kind="valid")
    assert len(scores) > 1 and all(0 <= score <= 100 for score in scores)


@pytest.mark.slow
def test_the_same_lines_come_out(models: dict[str, Path], toy_data: Path, tmp_path: Path) -> None:
    """Each task reads checkpoints of the other; a score may differ in its last digit."""
    product, cascade = (str(models[name]) for name in ("product", "cascade"))
    lengths = ["--max-len-a", "1.5", "--max-len-b", "5"]
    cases = [
        ["--path", f"{product}:{cascade}", "--beam", "3", "--nbest", "2"],
        ["--path", product, "--beam", "4", "--print-alignment", "hard", "--prefix-size", "2"],
        ["--path", cascade, "--beam", "5", "--lenpen", "0.6", "--unkpen", "2", "--batch-size", "7"],
        ["--path", cascade, "--score-reference"],
        ["--path", cascade, "--beam", "2", "--no-repeat-ngram-size", "2"],
    ]
    text = (toy_data.parent / "text" / "test.src").read_text().splitlines()[:3]
    common = [str(toy_data), *PLUGIN, *PAIR, "--cpu", "--num-workers", "0", *lengths]
    lines = []
    for task in BOTH:
        # --task mhe_translation loses no sentence without being told.
        told = ALL_SENTENCES if task == "translation" else []
        lines += [["generate", "", *common, *told, "--task", task, *case] for case in cases]
        lines.append(["interactive", "\n".join(text) + "\n", *common, "--task", task, "--path", product])
    outputs, said = run_all(lines, tmp_path)
    ours, stock = outputs[: len(cases) + 1], outputs[len(cases) + 1 :]
    for case, mine, theirs in zip([*cases, ["interactive"]], ours, stock, strict=True):
        check_same(mine, theirs, case)
    counts = [sum(line.startswith("H-") for line in output) for output in ours]
    assert counts == [2 * TOY_SIZES["test"], *[TOY_SIZES["test"]] * 4, 3]
    assert sum(line.startswith("A-") for line in ours[1]) == TOY_SIZES["test"]
    assert said.count("mhe: compact search") == 4
    assert said.count("mhe: V-wide search: --no-repeat-ngram-size") == 1


@pytest.mark.slow
def test_hub_takes_the_task_from_the_checkpoint(models: dict[str, Path], toy_data: Path) -> None:
    text = (toy_data.parent / "text" / "test.src").read_text().splitlines()[:2]
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from mhe_fairseq.models import MHETransformerModel as M\n"
        f"model = M.from_pretrained({str(models['product'].parent)!r}, 'checkpoint_best.pt', "
        f"{str(toy_data)!r}, user_dir={PLUGIN[1]!r})\n"
        "print('TASK', type(model.task).__name__)\n"
        f"for line in {text!r}: print('T', model.translate(line, beam=3, max_len_a=1.5, max_len_b=5))\n"
    )
    done = run_command(["python", "-c", code])
    flags = ["--beam", "3", "--batch-size", "1", "--task", "translation"]
    expected = hypotheses(generate(toy_data, models["product"], *flags).stdout)
    assert "TASK MHETranslationTask" in done.stdout
    assert "mhe: compact search" in done.stderr
    assert [line[2:] for line in done.stdout.splitlines() if line.startswith("T ")] == [
        expected[number][1] for number in range(2)
    ]
