"""``--task mhe_translation_multi_simple_epoch`` beside fairseq's ``translation_multi_simple_epoch``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.commands import ALL_SENTENCES, PLUGIN, generate, hypotheses
from tests.helpers import TOY_SIZES, run_command
from tests.many_languages import FEW, LANGS, LANGUAGES, MULTI, TRAIN, train_many
from tests.masked_lm import run_lines
from tests.tasks.test_commands import check_same, run_all

ASKED = ["--cpu", "--num-workers", "0", "--max-len-a", "1.5", "--max-len-b", "5"]


def pair(name: str) -> list[str]:
    source, target = name.split("-")
    return ["--source-lang", source, "--target-lang", target]


@pytest.mark.slow
def test_the_same_lines_come_out(many_models: dict[str, Path], many_data: Path, tmp_path: Path) -> None:
    """Each task reads checkpoints of the other; a score may differ in its last digit."""
    product, cascade, sampling = (str(many_models[name]) for name in ("product", "cascade", "sampling"))
    cases = [
        [*pair("aa-bb"), "--path", f"{product}:{cascade}", "--beam", "3", "--nbest", "2"],
        [*pair("bb-aa"), "--path", cascade, "--beam", "4", "--lenpen", "0.6", "--batch-size", "7"],
        [*pair("aa-cc"), "--path", product, "--print-alignment", "hard", "--prefix-size", "2"],
        [*pair("aa-cc"), "--path", cascade, "--lang-tok-replacing-bos-eos", "--beam", "2"],
        [*pair("aa-cc"), "--path", cascade, "--score-reference"],
        [*pair("bb-aa"), "--path", sampling, "--beam", "2"],
    ]
    text = (many_data.parent / "text" / "test.aa-cc.aa").read_text().splitlines()[:3]
    lines = []
    for task in (f"mhe_{MULTI}", MULTI):
        common = [str(many_data), *PLUGIN, *LANGUAGES, *ASKED, "--task", task]
        # Ours loses no sentence without being told.
        told = ALL_SENTENCES if task == MULTI else []
        lines += [["generate", "", *common, *told, *case] for case in cases]
        spoken = [*common, "--path", cascade, *pair("aa-cc")]
        lines.append(["interactive", "\n".join(text) + "\n", *spoken])
    outputs, said = run_all(lines, tmp_path)
    ours, stock = outputs[: len(cases) + 1], outputs[len(cases) + 1 :]
    for case, mine, theirs in zip([*cases, ["interactive"]], ours, stock, strict=True):
        check_same(mine, theirs, case)
    counts = [sum(line.startswith("H-") for line in output) for output in ours]
    many, few = TOY_SIZES["test"], FEW["test"]
    assert counts == [2 * many, many, few, few, few, many, 3]
    assert said.count("mhe: compact search") == 6 and "mhe: V-wide" not in said
    # What a hypothesis was made to begin with is no part of it.
    assert not any("\t__cc__" in line for line in ours[-1] if line.startswith(("H-", "D-")))


@pytest.mark.slow
def test_hub(many_models: dict[str, Path], many_data: Path) -> None:
    text = (many_data.parent / "text" / "test.aa-cc.aa").read_text().splitlines()[:2]
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from mhe_fairseq.models import MHETransformerModel as M\n"
        f"load = lambda name, **more: M.from_pretrained({str(many_models['product'].parent.parent)!r} + "
        f"'/' + name, 'checkpoint_last.pt', {str(many_data)!r}, user_dir={PLUGIN[1]!r}, **more)\n"
        "models = [load('product', source_lang='aa', target_lang='cc'),\n"
        "    load('cascade', source_lang='aa', target_lang='cc', task='mhe_" + MULTI + "')]\n"
        "for model in models:\n"
        f"    for line in {text!r}: print('T', model.translate(line, beam=3, max_len_a=1.5, max_len_b=5))\n"
        "try: load('product').translate('ba')\n"
        "except Exception as error: print('REFUSED', error)\n"
    )
    done = run_command(["python", "-c", code])
    found = [line[2:] for line in done.stdout.splitlines() if line.startswith("T ")]
    expected = []
    for name in ("product", "cascade"):
        flags = [*LANGUAGES, "--task", MULTI, "--beam", "3", "--batch-size", "1", *pair("aa-cc")]
        texts = hypotheses(generate(many_data, many_models[name], *flags).stdout)
        expected += [texts[number][1] for number in range(2)]
    assert found == expected
    assert done.stderr.count("mhe: compact search") == 4  # a generator a line
    assert "REFUSED this task has the pairs aa-bb,bb-aa,aa-cc; say which one to translate" in done.stdout


@pytest.mark.slow
def test_each_task_goes_on_with_the_checkpoint_of_the_other(
    many_models: dict[str, Path], many_data: Path, tmp_path: Path
) -> None:
    runs = {}
    for task, name in ((f"mhe_{MULTI}", "cascade"), (MULTI, "product")):
        (tmp_path / name).mkdir()
        shutil.copy(many_models[name], tmp_path / name)
        codes = str(many_models[name].parent.parent / "codes")
        more = ["--mhe-codebook", codes] if name == "cascade" else ["--mhe-mixtures", "2"]
        runs[name] = (task, ["--mhe-head", name, *more])
    train_many(many_data, tmp_path, runs, updates=62)
    for name in runs:
        said = (tmp_path / f"{name}.log").read_text()
        assert "Loaded checkpoint" in said and '"num_updates": "61"' in said
        assert '"num_updates": "60"' not in said


def changed(flags: list[str], **values: str) -> list[str]:
    """Flags with other values."""
    flags = list(flags)
    for name, value in values.items():
        flags[flags.index("--" + name.replace("_", "-")) + 1] = value
    return flags


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            changed(LANGUAGES, lang_pairs="aa-bb,aa-dd"),
            "the pair aa-dd has the language 'dd', which is not one of aa, bb, cc; list it with --langs",
        ),
        (
            changed(LANGUAGES, lang_pairs="aa-bb,bb-cc"),
            "data-bin has no text of the pair bb-cc: neither valid.bb-cc.bb.idx nor valid.cc-bb.bb.idx "
            "(pairs with text: aa-bb)",
        ),
        (
            changed(LANGUAGES, lang_pairs="aa-dd", langs="aa,dd"),
            "has no dict.dd.txt (dictionaries there: dict.aa.txt, dict.bb.txt, dict.cc.txt)",
        ),
        (changed(LANGUAGES, lang_pairs="aa"), "'aa' is not a source and a target with one '-' between"),
        (LANGUAGES[2:], "--lang-pairs is missing; it lists the pairs that are trained"),
        (
            [*LANGUAGES, "--lang-dict", "no/file"],
            "--langs aa,bb,cc and --lang-dict no/file both list the languages; give one of them",
        ),
        (
            [*LANGUAGES[:2], "--lang-dict", "no/file"],
            "there is no file no/file for --lang-dict; it needs one language a line",
        ),
        ([*LANGUAGES, "--source-lang", "aa"], "one of two languages is given"),
    ],
)
def test_bad_input(flags: list[str], sentence: str, many_data: Path, tmp_path: Path) -> None:
    line = ["fairseq-train", str(many_data), *PLUGIN, "--task", f"mhe_{MULTI}", *flags, *TRAIN]
    done = run_command([*line, "--save-dir", str(tmp_path)], check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mhe_fairseq: error: ") and sentence in last, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_dictionaries_that_differ(many_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(many_data, data)
    lines = (data / "dict.cc.txt").read_text().splitlines()
    line = ["fairseq-train", str(data), *PLUGIN, "--task", f"mhe_{MULTI}", *LANGUAGES, *TRAIN]
    for text, sentence in (
        (
            lines[:-1],
            f"the dictionaries of the target languages bb and cc differ ({len(lines) + 7} and "
            f"{len(lines) + 6} symbols); all pairs need one dictionary",
        ),
        (
            [lines[1], lines[0], *lines[2:]],
            f"the first difference is symbol 4, '{lines[0].split()[0]}' and '{lines[1].split()[0]}'); all",
        ),
    ):
        (data / "dict.cc.txt").write_text("\n".join(text) + "\n")
        done = run_command([*line, "--save-dir", str(tmp_path)], check=False)
        assert done.returncode != 0 and sentence in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_checkpoint_of_other_languages(
    many_models: dict[str, Path], many_data: Path, tmp_path: Path
) -> None:
    """To translate with, and to train on; as many languages in another order, and more."""
    lines = {}
    for kind, name, langs in (
        ("generate", "product", "aa,cc,bb"),
        ("generate", "cascade", "aa,bb,cc,dd"),
        ("train", "product", "aa,cc,bb"),
        ("train", "sampling", "aa,bb,cc,dd"),
    ):
        line = [kind, str(many_data), *PLUGIN, "--task", f"mhe_{MULTI}", *changed(LANGUAGES, langs=langs)]
        path = str(many_models[name])
        if kind == "generate":
            line += [*pair("aa-bb"), "--path", path, *ASKED]
        else:
            head = ["--mhe-head", name, *(["--mhe-mixtures", "2"] if name == "product" else [])]
            line += [*TRAIN, *head, "--restore-file", path, "--save-dir", str(tmp_path / "none")]
            line += ["--max-update", "61"]
        lines[f"{kind} {langs}"] = line
    for name, ended in run_lines(tmp_path / "logs", lines).items():
        assert ended.status != 0, name
        assert ended.said.strip().splitlines()[-1] == (
            "mhe_fairseq: error: the checkpoint was trained with the languages "
            f"{','.join(LANGS)} and here they are {name.split()[1]}; each has a token in the dictionary, so "
            f"give --langs {','.join(LANGS)}"
        )
