#!/usr/bin/env python3
"""Train many languages in one model with the softmax and with a cascade, and compare them in every direction.

    python scripts/study/many_languages.py --pair en-de=CORPUS/debian-en-de \
        --pair en2-de2=CORPUS/ha-en-de:en-de --out many-languages

All pairs are trained in both directions, in one model with one dictionary, which a study describes
(``examples/translation/study.toml``: its body, optimiser, updates and pieces). The softmax is fairseq's,
with fairseq's task. The cascade has the codebook of `mhe assign --lang-pairs`; the compact search translates
with it, once among all tokens and once among those of the target language (``--mhe-allowed lang``). The
models have the same batches and updates. Every direction's translations are compared by a paired bootstrap
with the softmax's of the same seed. Updates are timed with the models taking turns.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.common.files import PrepareError  # noqa: E402
from scripts.data.prepare_pairs import Pair  # noqa: E402
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.study import USER_DIR, parse_seeds  # noqa: E402
from scripts.study.study_config import Study  # noqa: E402
from scripts.study.time_updates import TimingError, measure  # noqa: E402
from scripts.study.translations import TranslationError, bootstrap, read_translations, score  # noqa: E402

TASK = "translation_multi_simple_epoch"

#: Columns of the record.
COLUMNS = [
    {"key": "model", "title": "model"},
    {"key": "seed", "title": "seed", "format": "{}"},
    {"key": "pair", "title": "direction"},
    {"key": "bleu", "title": "BLEU", "format": "{:.2f}"},
    {"key": "chrf", "title": "chrF2", "format": "{:.2f}"},
    {"key": "p", "title": "p", "format": "{:.3f}"},
    {"key": "speed", "title": "sentences a second, search", "format": "{:.1f}"},
    {"key": "update", "title": "seconds an update", "format": "{:.3f}"},
]


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        name: of its rows.
        task: of fairseq.
        flags: of fairseq-train, besides those of all models.
    """

    name: str
    task: str
    flags: list[str]


class Where:
    """What lies under ``out``, and the flags of the languages."""

    def __init__(self, out: Path, pairs: list[Pair], temperature: float) -> None:
        self.out, self.pairs = out, pairs
        self.text, self.data, self.codes = out / "prepared", out / "data-bin", out / "codes"
        langs = list(dict.fromkeys(name for pair in pairs for name in pair.names))
        self.directions = [way for pair in pairs for way in (str(pair), "-".join(reversed(pair.names)))]
        self.listed = ["--lang-pairs", ",".join(self.directions), "--langs", ",".join(langs)]
        self.drawn = ["--sampling-method", "temperature", "--sampling-temperature", f"{temperature:g}"]
        self.tokens = ["--encoder-langtok", "tgt", "--decoder-langtok"]

    def models(self) -> list[Model]:
        tied = ["--share-all-embeddings", "--label-smoothing", "0.1"]
        stock = ["--arch", "transformer", "--criterion", "label_smoothed_cross_entropy", *tied]
        ours = ["--arch", "mhe_transformer", "--criterion", "mhe_cross_entropy", *tied]
        ours += ["--mhe-head", "cascade", "--mhe-codebook", str(self.codes)]
        return [Model("softmax", TASK, stock), Model("cascade", f"mhe_{TASK}", ours)]

    def references(self, direction: str) -> list[str]:
        source, target = direction.split("-")
        pair = next(str(pair) for pair in self.pairs if set(pair.names) == {source, target})
        path = self.text / "text" / f"test.{pair}.{target}"
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def prepare_steps(study: Study, where: Where) -> list[Step]:
    """From plain text to binarised pairs and a codebook."""
    words = ["python", "scripts/data/prepare_pairs.py", "--out", str(where.text)]
    words += ["--vocab-size", str(study.vocab_size)]
    for pair in where.pairs:
        words += ["--pair", f"{pair}={pair.folder}:{'-'.join(pair.endings)}"]
    steps = [Step("prepare", words, where.text / "dict.txt")]
    for pair in where.pairs:
        source, target = pair.names
        words = ["fairseq-preprocess", "-s", source, "-t", target, "--workers", "2", "--joined-dictionary"]
        words += ["--srcdict", str(where.text / "dict.txt"), "--destdir", str(where.data)]
        for split in ("train", "valid", "test"):
            words += [f"--{split}pref", str(where.text / "pieces" / f"{split}.{pair}")]
        made = where.data / f"test.{pair}.{target}.idx"
        steps.append(Step(f"preprocess-{pair}", words, made, where.out / f"preprocess-{pair}.log"))
    words = ["mhe", "assign", "--data", str(where.data), *where.listed, *where.drawn]
    steps.append(Step("assign", [*words, "-o", str(where.codes)], where.codes, where.out / "assign.log"))
    return steps


def train_step(study: Study, where: Where, model: Model, seed: int, folder: Path) -> Step:
    every = str(study.every)
    words = ["fairseq-train", str(where.data), *USER_DIR, "--task", model.task]
    words += [*where.listed, *where.tokens, *where.drawn, *model.flags, *shlex.split(study.train)]
    words += ["--required-batch-size-multiple", "1", "--update-epoch-batch-itr", "True", "--cpu"]
    words += ["--num-workers", "0", "--max-update", str(study.updates), "--seed", str(seed)]
    words += ["--validate-interval", "1000", "--validate-interval-updates", every]
    words += ["--save-interval-updates", every, "--keep-interval-updates", "1", "--no-epoch-checkpoints"]
    words += ["--log-format", "json", "--log-interval", str(min(50, study.every))]
    words += ["--save-dir", str(folder / "checkpoints")]
    last = folder / "checkpoints" / "checkpoint_last.pt"
    return Step("train", words, last, folder / "train.log", append=True)


def generate_step(
    study: Study, where: Where, model: Model, direction: str, folder: Path, more: list[str]
) -> Step:
    source, target = direction.split("-")
    name = "-".join(["test", source, target, *(["allowed"] if more else [])])
    words = ["fairseq-generate", str(where.data), *USER_DIR, "--task", model.task, *where.listed]
    words += [*where.tokens, "--source-lang", source, "--target-lang", target, *more]
    words += ["--path", str(folder / "checkpoints" / "checkpoint_last.pt"), *shlex.split(study.generate)]
    words += ["--gen-subset", "test", "--remove-bpe", "sentencepiece", "--cpu"]
    words += ["--required-batch-size-multiple", "1", "--log-format", "none"]
    return Step(name, words, folder / f"{name}.txt", folder / f"{name}.txt")


def searched_a_second(log: Path) -> float:
    """Sentences, as fairseq-generate says.

    Raises:
        TranslationError: it says none.
    """
    found = re.findall(r"\(([0-9.]+) sentences/s", log.read_text(encoding="utf-8"))
    if not found:
        raise TranslationError(f"{log} does not say how many sentences a second were translated")
    return float(found[-1])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, translate, score, time; the record."""
    corpora = {str(pair.folder): f"CORPUS/{pair.folder.name}" for pair in args.pair}
    comparison = Comparison(args, "many-languages", corpora)
    study = comparison.study()
    study = replace(study, every=min(study.every, study.updates))
    seeds = study.seeds if args.seeds is None else parse_seeds(args.seeds)
    where = Where(args.out, args.pair, args.temperature)

    def run(folder: Path, seed: int, steps: list[Step]) -> None:
        comparison.run(folder, steps, seed=seed, pairs=[f"{pair}={pair.folder}" for pair in where.pairs])

    run(where.out, 0, prepare_steps(study, where))
    softmax, cascade = where.models()
    searches: list[tuple[str, Model, list[str]]] = [
        (softmax.name, softmax, []),
        (cascade.name, cascade, []),
        ("cascade, tokens of the language", cascade, ["--mhe-allowed", "lang"]),
    ]
    rows = []
    for seed in seeds:
        for model in (softmax, cascade):
            folder = args.out / f"{model.name}-{seed}"
            steps = [train_step(study, where, model, seed, folder)]
            steps += [
                generate_step(study, where, model, direction, folder, more)
                for _, other, more in searches
                if other is model
                for direction in where.directions
            ]
            run(folder, seed, steps)
        folders = {model.name: args.out / f"{model.name}-{seed}" for model in (softmax, cascade)}
        rows += scored(searches, where, seed, folders)
    last = [args.out / f"{model.name}-{seeds[0]}/checkpoints/checkpoint_last.pt" for model in where.models()]
    timed = measure(last, args.rounds, args.turn, int(os.environ["OMP_NUM_THREADS"]))
    medians = {model.name: each.median for model, each in zip(where.models(), timed, strict=True)}
    for row in rows:
        row["update"] = round(medians[row["model"].partition(",")[0]], 4)
    log = (args.out / "assign.log").read_text(encoding="utf-8")
    groups = [" ".join(line.split()) for line in log.splitlines() if " different, in " in line]
    return comparison.record(
        about="Many languages in one model: the softmax against a cascade",
        data=f"pairs {', '.join(map(str, args.pair))}, both directions; {study.vocab_size:,} pieces of "
        f"sentencepiece, joined; sentences drawn at temperature {args.temperature:g}; {'; '.join(groups)}",
        setup=f"body and optimiser of {from_root(args.study)}, {study.updates:,} updates; p: that chance "
        "makes so large a difference in BLEU to the softmax of the same seed (paired bootstrap), none if all "
        "translations are the same; updates timed with the models taking turns",
        seeds=", ".join(map(str, seeds)),
        columns=COLUMNS,
        rows=rows,
    )


def scored(
    searches: list[tuple[str, Model, list[str]]], where: Where, seed: int, folders: dict[str, Path]
) -> list[dict[str, Any]]:
    """Rows of one seed; the first of ``searches`` is what the others are compared with."""
    rows = []
    for direction in where.directions:
        references = where.references(direction)
        base: list[str] = []
        for name, model, more in searches:
            file = folders[model.name] / f"test-{direction}{'-allowed' if more else ''}.txt"
            lines = read_translations(file, len(references))
            base = base or lines
            scores = score(lines, references)
            rows.append(
                {
                    "model": name, "seed": seed, "pair": direction, "bleu": round(scores.bleu, 2),
                    "chrf": round(scores.chrf, 2), "speed": searched_a_second(file), "update": None,
                    "p": None if lines == base else bootstrap(base, lines, references)["BLEU"],
                }
            )  # fmt: skip
    return rows


def pairs_from_root(args: argparse.Namespace) -> None:
    """Read ``--pair``, and name its folders from the root of the repository.

    Raises:
        PrepareError: one that is no pair.
    """
    pairs = [Pair.read(text) for text in args.pair]
    args.pair = [replace(pair, folder=from_root(pair.folder)) for pair in pairs]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "many-languages", has_source=False)
    add = parser.add_argument
    add("--pair", action="append", required=True, metavar="AA-BB=DIR[:XX-YY]", help="may be repeated")
    add("--temperature", type=float, default=2.0, help="sentences are drawn at (default: %(default)s)")
    add("--vocab-size", type=int, help="pieces (default: the study's)")
    add("--seeds", help="such as 1,2 (default: the study's)")
    add("--rounds", type=int, default=6, help="turns of each model that is timed (default: %(default)s)")
    add("--turn", type=int, default=5, help="updates in a turn (default: %(default)s)")
    args = parser.parse_args(argv)
    return run_study("many_languages.py", args, compare, pairs_from_root, (PrepareError, TimingError))


if __name__ == "__main__":
    sys.exit(main())
