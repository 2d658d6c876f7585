#!/usr/bin/env python3
"""Pretrain a small model by denoising, fine-tune it to translate, and compare with no pretraining.

    python scripts/study/denoising.py --text CORPUS/mono-en:txt --source CORPUS/debian-en-de --out denoising

The pretraining reads text of one language; the fine-tuning has few pairs, the first ``--pairs``. All of it
has one dictionary: pieces of the pairs and of as many lines of the text. A study,
``examples/pretraining/denoising.toml``, has the body, the optimiser, the search and the variants: fairseq's
softmax, a cascade and a sampling head. Each is fine-tuned, with every seed, from its own pretraining and from
nothing. In each training the learning rate rises for a tenth of the updates and then falls to nothing.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.common.curves import read_log  # noqa: E402
from scripts.common.files import PrepareError, read_lines  # noqa: E402
from scripts.common.seeds import spread  # noqa: E402
from scripts.data.prepare_data import find_source  # noqa: E402
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.study import USER_DIR, Folders, generate_step, parse_seeds  # noqa: E402
from scripts.study.study_config import Study, StudyError, Variant  # noqa: E402
from scripts.study.translations import bootstrap, read_translations, score  # noqa: E402

#: Tokens are masked one by one. A sample is a paragraph, of which what is too long is left out.
NOISE = (
    "--sample-break-mode eos --shorten-method truncate --mask 0.3 --mask-length subword --replace-length 1 "
    "--rotate 0 --permute-sentences 0"
)

#: Columns of the record.
COLUMNS = [
    {"key": "model", "title": "model"},
    {"key": "pretraining", "title": "pretraining, updates", "format": "{:,}"},
    {"key": "denoising", "title": "its bits a piece", "format": "{:.3f}"},
    {"key": "bits", "title": "bits a piece, validation", "format": "{:.3f}"},
    {"key": "bleu", "title": "BLEU", "format": "{:.2f}"},
    {"key": "chrf", "title": "chrF2", "format": "{:.2f}"},
    {"key": "gain", "title": "BLEU gained", "format": "{:+.2f}"},
    {"key": "p_gain", "title": "p of each seed"},
    {"key": "p_model", "title": "p against the softmax"},
]


class Where(Folders):
    """What lies under ``out``; ``data`` has the pairs."""

    def __init__(self, out: Path, text: Path, ending: str) -> None:
        super().__init__(out)
        self.mono, self.ending = text, ending
        self.binarised = out / "mono-bin"


def prepare(args: argparse.Namespace, study: Study, where: Where) -> list[Step]:
    """From plain text to binarised text and pairs, and codebooks of both."""
    src, tgt = study.languages
    dictionary = where.text / "dict.txt"
    words = ["python", "scripts/data/prepare_denoising.py", "--mono", str(where.mono)]
    words += ["--langs", where.ending, "--source", str(args.source), "--src", src, "--tgt", tgt]
    words += ["--joint", "--mask"]
    words += ["--pieces", str(study.vocab_size), "--lines", str(args.lines), "--pairs", str(args.pairs)]
    steps = [Step("prepare", [*words, "--workers", "1", "--out", str(where.text)], dictionary)]
    # The sides of the pairs are here for the codebook: both languages have to be in it.
    sides = {"text": f"mono/{{}}.{where.ending}", src: f"pair/{{}}.{src}", tgt: f"pair/{{}}.{tgt}"}
    common = ["--srcdict", str(dictionary), "--workers", "1"]
    for name, prefix in sides.items():
        words = ["fairseq-preprocess", "--only-source", *common]
        for split in ("train", "valid") if name == "text" else ("train",):
            words += [f"--{split}pref", str(where.text / prefix.format(split))]
        made = where.binarised / name / "train.idx"
        words += ["--destdir", str(made.parent)]
        steps.append(Step(f"preprocess-{name}", words, made, where.out / f"preprocess-{name}.log"))
    made = where.binarised / "dict.txt"
    steps.append(Step("dictionary", ["cp", str(dictionary), str(made)], made))
    words = ["fairseq-preprocess", "-s", src, "-t", tgt, "--joined-dictionary", *common]
    for split in ("train", "valid", "test"):
        words += [f"--{split}pref", str(where.text / "pair" / split)]
    made = where.data / f"test.{src}-{tgt}.{tgt}.idx"
    words += ["--destdir", str(where.data)]
    steps.append(Step("preprocess-pair", words, made, where.out / "preprocess-pair.log"))
    for variant in study.variants.values():
        if variant.assign:
            codes = where.codes(variant)
            words = ["mhe", "assign", "--data", str(where.binarised), *shlex.split(variant.assign)]
            words += ["-o", str(codes)]
            step = Step(f"assign-{codes.name}", words, codes, codes.with_suffix(".log"))
            steps += [] if step in steps else [step]
    return steps


def train_step(
    study: Study, where: Where, variant: Variant, task: list[str], updates: int, seed: int, folder: Path
) -> Step:
    """fairseq-train, validated after its last update.

    Args:
        task: data and flags of the task.
    """
    own = [word.replace("{codes}", str(where.codes(variant))) for word in shlex.split(variant.train)]
    words = ["fairseq-train", *task, *USER_DIR, *own, *shlex.split(study.train)]
    words += ["--lr-scheduler", "polynomial_decay", "--total-num-update", str(updates)]
    words += ["--warmup-updates", str(math.ceil(updates / 10)), "--max-update", str(updates)]
    words += ["--required-batch-size-multiple", "1", "--update-epoch-batch-itr", "True", "--cpu"]
    words += ["--num-workers", "0", "--seed", str(seed)]
    # fairseq validates whenever it saves: both are done at the end alone.
    words += ["--validate-interval", "1000", "--validate-interval-updates", str(updates)]
    words += ["--save-interval-updates", str(updates), "--keep-interval-updates", "1"]
    words += ["--no-epoch-checkpoints", "--log-format", "json", "--log-interval", str(min(50, updates))]
    words += ["--save-dir", str(folder / "checkpoints")]
    last = folder / "checkpoints" / "checkpoint_last.pt"
    return Step("train", words, last, folder / "train.log", append=True)


def pretrain_step(args: argparse.Namespace, study: Study, where: Where, variant: Variant) -> Step:
    task = [str(where.binarised / "text"), "--task", "denoising", *NOISE.split()]
    task += ["--tokens-per-sample", str(args.tokens_per_sample)]
    folder = where.out / f"{variant.name}-pretrained"
    return train_step(study, where, variant, task, args.pretrain_updates, 1, folder)


def tune_step(study: Study, where: Where, variant: Variant, seed: int, pretrained: Path | None) -> Step:
    """From a checkpoint, or from nothing."""
    src, tgt = study.languages
    is_ours = "--arch mhe_" in variant.train
    task = [str(where.data), "--task", "mhe_translation" if is_ours else "translation", "-s", src, "-t", tgt]
    # --finetune-from-model and not --restore-file: what was interrupted continues with itself.
    task += [] if pretrained is None else ["--finetune-from-model", str(pretrained)]
    folder = where.out / f"{variant.name}-{'tuned' if pretrained else 'nothing'}-{seed}"
    return train_step(study, where, variant, task, study.updates, seed, folder)


def last_bits(step: Step) -> float:
    """Of a piece of the validation set, after the last update."""
    assert step.output is not None
    return math.log2(read_log(step.output, step.name).validation[-1].perplexity)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Pretrain, fine-tune, translate, score; the record."""
    text, ending = args.text
    names = {str(folder): f"CORPUS/{folder.name}" for folder in (text, args.source)}
    comparison = Comparison(args, "denoising", names)
    study = comparison.study()
    for flag, value in (("pretrain-updates", args.pretrain_updates), ("updates", study.updates)):
        if value < 1:
            raise StudyError(f"--{flag} must be at least 1, got {value}")
    seeds = study.seeds if args.seeds is None else parse_seeds(args.seeds)
    where = Where(args.out, text, ending)

    def run(folder: Path, steps: list[Step]) -> None:
        comparison.run(folder, steps, text=str(text), source=str(args.source))

    run(where.out, prepare(args, study, where))
    before: dict[str, float] = {}
    tuned: dict[tuple[str, bool], list[Step]] = {}
    for variant in study.variants.values():
        pretraining = pretrain_step(args, study, where, variant)
        run(_folder(pretraining), [pretraining])
        before[variant.name] = last_bits(pretraining)
        for pretrained in (None, pretraining.makes):
            steps = [tune_step(study, where, variant, seed, pretrained) for seed in seeds]
            for step in steps:
                test = generate_step(study, where, _folder(step), step.makes, "test", step)
                run(_folder(step), [step, test])
            tuned[variant.name, pretrained is not None] = steps
    references = list(read_lines(find_source(args.source, "test", study.languages[1])))
    return comparison.record(
        about="Models pretrained by denoising and fine-tuned to translate: the softmax and other heads",
        data=f"text: {args.lines or 'all'} paragraphs; {args.pairs or 'all'} pairs "
        f"{' to '.join(study.languages)}; {study.vocab_size:,} pieces of sentencepiece, of both",
        setup=f"{from_root(args.study)}; {args.pretrain_updates:,} updates of denoising, {study.updates:,} "
        "of fine-tuning; p: that chance makes so large a difference in BLEU (paired bootstrap), to no "
        f"pretraining with the same seed, and to {study.baseline} with the same pretraining",
        seeds=",".join(map(str, seeds)),
        columns=COLUMNS,
        rows=rows_of(study, args.pretrain_updates, before, tuned, references),
    )


def _folder(step: Step) -> Path:
    """Of a training."""
    return step.makes.parent.parent


def rows_of(
    study: Study,
    updates: int,
    before: dict[str, float],
    tuned: dict[tuple[str, bool], list[Step]],
    references: list[str],
) -> list[dict[str, Any]]:
    """Of the record: each variant from nothing, then each from its pretraining.

    Args:
        study: what was compared.
        updates: of the pretraining.
        before: of each variant, bits after its pretraining.
        tuned: trainings by variant and whether it was pretrained.
        references: of the test set.
    """
    lines = {
        key: [read_translations(_folder(step) / "test.txt", len(references)) for step in steps]
        for key, steps in tuned.items()
    }
    scores = {key: [score(each, references) for each in of] for key, of in lines.items()}

    def chances(base: tuple[str, bool], key: tuple[str, bool]) -> str:
        pairs = zip(lines[base], lines[key], strict=True)
        return ", ".join(f"{bootstrap(*pair, references)['BLEU']:.3f}" for pair in pairs)

    rows = []
    for key in sorted(lines, key=lambda each: each[1]):
        name, is_pretrained = key
        pairs = zip(scores[key], scores[name, False], strict=True)
        is_base = name == study.baseline
        rows.append(
            {
                "model": name,
                "pretraining": updates if is_pretrained else 0,
                "denoising": before[name] if is_pretrained else None,
                "bits": spread([last_bits(step) for step in tuned[key]]),
                "bleu": spread([each.bleu for each in scores[key]]),
                "chrf": spread([each.chrf for each in scores[key]]),
                "gain": fmean(own.bleu - base.bleu for own, base in pairs) if is_pretrained else None,
                "p_gain": chances((name, False), key) if is_pretrained else None,
                "p_model": None if is_base else chances((study.baseline, is_pretrained), key),
            }
        )
    return rows


def text_folder(text: str) -> tuple[Path, str]:
    folder, _, ending = text.partition(":")
    if not folder or not ending:
        raise argparse.ArgumentTypeError(
            f"takes a folder and the ending of its files, DIR:ENDING; got {text}"
        )
    return Path(folder), ending


def from_root_both(args: argparse.Namespace) -> None:
    args.source, args.text = from_root(args.source), (from_root(args.text[0]), args.text[1])


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "denoising")
    parser.set_defaults(study=ROOT / "examples/pretraining/denoising.toml")
    add = parser.add_argument
    add("--text", type=text_folder, required=True, metavar="DIR:ENDING", help="{train,valid}.ENDING[.xz]")
    add("--lines", type=int, default=40000, help="of the text, 0 for all (default: %(default)s)")
    add("--pairs", type=int, default=5000, help="to train with, 0 for all (default: %(default)s)")
    add("--pretrain-updates", type=int, default=1500, help="default: %(default)s")
    add("--tokens-per-sample", type=int, default=64, help="of a paragraph, at most (default: %(default)s)")
    add("--vocab-size", type=int, help="pieces (default: the study's)")
    add("--seeds", help="of the fine-tuning, such as 1,2 (default: the study's)")
    args = parser.parse_args(argv)
    return run_study("denoising.py", args, compare, from_root_both, (PrepareError,))


if __name__ == "__main__":
    sys.exit(main())
