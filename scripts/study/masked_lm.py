#!/usr/bin/env python3
"""Pretrain a small masked language model with each output layer, fine-tune it to classify, and compare.

    python scripts/study/masked_lm.py --text CORPUS/mono-en:txt --labelled CORPUS/topics-en --out masked-lm

The pretraining reads ``{train,valid,test}.ENDING``, a paragraph a line. The fine-tuning has few labelled
sentences, the first ``--examples`` of ``train.tsv`` (a label, a tab and a text a line); of its checkpoints
the one with the best accuracy on ``valid.tsv`` is tested. The softmax is fairseq's own ``roberta`` and
``masked_lm``; every row has the same body, batches, masks and optimiser. What is fine-tuned from nothing is
fairseq's ``roberta``. In each training the learning rate rises for a tenth of the updates and then falls to
nothing.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.common.curves import LogError  # noqa: E402
from scripts.common.files import SPLITS, PrepareError, read_lines, write_whole  # noqa: E402
from scripts.common.seeds import spread  # noqa: E402
from scripts.data.prepare_data import find_source as find_text  # noqa: E402
from scripts.data.prepare_labelled import find_source, read_pairs  # noqa: E402
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.denoising import last_bits, text_folder  # noqa: E402
from scripts.study.study import USER_DIR, parse_seeds  # noqa: E402
from scripts.study.study_config import StudyError  # noqa: E402

STOCK = "--arch roberta --criterion masked_lm"
OURS = "--arch mhe_roberta --criterion mhe_masked_lm"
#: name -> flags of the pretraining; {codes} is filled in: a codebook of `mhe assign --by cluster`.
HEADS = {
    "softmax": STOCK,
    "cascade": f"{OURS} --mhe-head cascade --mhe-codebook {{codes}}",
    "cascade-bias": f"{OURS} --mhe-head cascade --mhe-codebook {{codes}} --mhe-bias",
    "sampling": f"{OURS} --mhe-head sampling --mhe-codebook {{codes}} --mhe-exact-last 0.1",
    "sampling-sampled": f"{OURS} --mhe-head sampling --mhe-codebook {{codes}}",
    "sampling-bias": f"{OURS} --mhe-head sampling --mhe-codebook {{codes}} --mhe-exact-last 0.1 --mhe-bias",
    "sampling-shared": f"{OURS} --mhe-head sampling",
}
#: Pretrained where --heads says nothing.
DEFAULT = "softmax,cascade,sampling"
#: Of every training.
TRAINING = (
    "--encoder-layers 3 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 "
    "--optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0"
)
#: Tokens of a sample, and the positions of every model. With more, a small model takes long to find out what
#: stands beside what: after 500 updates of as many tokens in all, 9.6 bits with 128 and 9.2 with 32.
TOKENS = 32
SAMPLES = 64
#: More is masked than BERT's 15%: the body reads what is masked and what is not, and only the former teaches.
#: No text is read twice, so nothing is dropped out.
MASKING = f"--sample-break-mode none --mask-prob 0.3 --batch-size {SAMPLES} --dropout 0 --attention-dropout 0"
#: Flags that the test of a fine-tuned model takes, too.
CLASSIFYING = (
    "--classification-head-name classes --init-token 0 --separator-token 2 --shorten-method truncate "
    "--batch-size 32"
)
#: Accuracy decides which checkpoint is tested.
TUNING = (
    "--dropout 0.1 --attention-dropout 0.1 --validate-interval 4 --best-checkpoint-metric accuracy "
    "--maximize-best-checkpoint-metric"
)

#: Columns of the record.
COLUMNS = [
    {"key": "pretraining", "title": "pretraining"},
    {"key": "updates", "title": "updates", "format": "{:,}"},
    {"key": "bits", "title": "bits a masked piece", "format": "{:.3f}"},
    {"key": "valid", "title": "accuracy after fine-tuning, validation", "format": "{:.1f}"},
    {"key": "test", "title": "test", "format": "{:.1f}"},
    {"key": "gain", "title": "to no pretraining", "format": "{:+.1f}"},
    {"key": "against", "title": "to the softmax", "format": "{:+.1f}"},
    {"key": "each", "title": "each seed's test"},
]


class Where:
    """What lies under ``out``."""

    def __init__(self, out: Path) -> None:
        self.out, self.text, self.codes = out, out / "text", out / "codes"
        self.binarised, self.pieces = self.text / "data-bin", self.text / "spm.model"
        #: The labelled sentences that are used, and what is made of them.
        self.chosen, self.labelled = out / "chosen", out / "labelled"


def prepare_steps(args: argparse.Namespace, where: Where, heads: list[str]) -> list[Step]:
    """From plain text to binarised text and sentences, and a codebook if a head asks for one."""
    folder, ending = args.text
    words = ["python", "scripts/data/prepare_text.py", "--pieces", str(args.pieces), "--workers", "1"]
    for split in SPLITS:
        words += [f"--{split}", str(find_text(folder, split, ending))]
    # The task would add <mask> by itself, behind the words that make the dictionary's size a multiple of 8.
    words += ["--add-symbol", "<mask>", "--out", str(where.text)]
    steps = [Step("prepare-text", words, where.binarised)]
    words = ["python", "scripts/data/prepare_labelled.py", "--source", str(where.chosen)]
    words += ["--dict", str(where.binarised / "dict.txt"), "--pieces", str(where.pieces)]
    words += ["--out", str(where.labelled)]
    steps.append(Step("prepare-labelled", words, where.labelled / "label"))
    if any("{codes}" in HEADS[head] for head in heads):
        words = ["mhe", "assign", "--data", str(where.binarised), "--by", "cluster", "-o", str(where.codes)]
        steps.append(Step("assign", words, where.codes, where.out / "assign.log"))
    return steps


def choose(args: argparse.Namespace, where: Where) -> None:
    """Write the labelled sentences that are used.

    Raises:
        PrepareError: a file is missing, or has no labelled sentences.
        StudyError: there are fewer than asked for.
    """
    for split in SPLITS:
        lines = [f"{label}\t{text}" for label, text in read_pairs(find_source(args.labelled, split))]
        if split == "train" and args.examples:
            if len(lines) < args.examples:
                raise StudyError(
                    f"--examples {args.examples:,} are more than the {len(lines):,} sentences that "
                    f"{args.labelled} has to train with"
                )
            lines = lines[: args.examples]
        where.chosen.mkdir(parents=True, exist_ok=True)
        write_whole(where.chosen / f"{split}.tsv", [f"{line}\n".encode() for line in lines])


def train_step(
    args: argparse.Namespace, task: list[str], updates: int, rate: float, seed: int, folder: Path
) -> Step:
    """fairseq-train.

    Args:
        args: of the study.
        task: data and flags of the task and the architecture.
        updates: to make.
        rate: the highest learning rate.
        seed: fairseq's.
        folder: of this training.
    """
    words = ["fairseq-train", *task, *USER_DIR, *shlex.split(TRAINING), "--max-positions", str(TOKENS)]
    words += ["--lr", str(rate), "--lr-scheduler", "polynomial_decay", "--total-num-update", str(updates)]
    words += ["--warmup-updates", str(math.ceil(updates / 10)), "--max-update", str(updates)]
    words += ["--required-batch-size-multiple", "1", "--update-epoch-batch-itr", "True", "--cpu"]
    words += ["--num-workers", "0", "--seed", str(seed), "--no-epoch-checkpoints"]
    words += ["--log-format", "json", "--log-interval", str(min(50, updates))]
    words += [*shlex.split(args.train_flags), "--save-dir", str(folder / "checkpoints")]
    last = folder / "checkpoints" / "checkpoint_last.pt"
    return Step("train", words, last, folder / "train.log", append=True)


def pretrain_step(args: argparse.Namespace, where: Where, head: str) -> Step:
    task = [str(where.binarised), "--task", "masked_lm", "--tokens-per-sample", str(TOKENS)]
    task += [*shlex.split(MASKING), *shlex.split(HEADS[head].replace("{codes}", str(where.codes)))]
    # An epoch is the whole text: validated, and saved for an interruption, in between.
    every = str(min(args.every, args.pretrain_updates))
    task += ["--validate-interval", "1000", "--validate-interval-updates", every]
    task += ["--save-interval-updates", every, "--keep-interval-updates", "1"]
    folder = where.out / f"{head}-pretrained"
    return train_step(args, task, args.pretrain_updates, args.pretrain_lr, 1, folder)


def classes_of(where: Where) -> int:
    """Labels are all that the dictionary of labels has, but for what fairseq-preprocess rounds up with."""
    lines = read_lines(where.labelled / "label" / "dict.txt")
    return sum(not line.startswith("madeupword") for line in lines)


def tune_steps(
    args: argparse.Namespace, where: Where, name: str, arch: str, seed: int, pretrained: Path | None
) -> list[Step]:
    """A fine-tuning, from a checkpoint or from nothing, and its test."""
    common = ["--task", "sentence_prediction", "--criterion", "sentence_prediction"]
    common += [*shlex.split(CLASSIFYING), "--num-classes", str(classes_of(where))]
    task = [str(where.labelled), "--arch", arch, *common, *shlex.split(TUNING)]
    # --finetune-from-model and not --restore-file: what was interrupted continues with itself.
    task += [] if pretrained is None else ["--finetune-from-model", str(pretrained)]
    folder = where.out / f"{name}-tuned-{seed}"
    train = train_step(args, task, args.updates, args.lr, seed, folder)
    words = ["fairseq-validate", str(where.labelled), *USER_DIR, *common, "--valid-subset", "test"]
    words += ["--path", str(folder / "checkpoints" / "checkpoint_best.pt"), "--cpu", "--num-workers", "0"]
    words += ["--required-batch-size-multiple", "1", "--log-format", "simple"]
    log = folder / "test.log"
    return [train, Step("test", words, log, log)]


def accuracies(step: Step, name: str) -> list[float]:
    """Those that a log has, in per cent and in its order.

    Raises:
        LogError: it has none.
    """
    assert step.output is not None
    text = step.output.read_text(encoding="utf-8", errors="replace")
    found = re.findall(rf'{name}"?:? "?([0-9.]+)', text)
    if not found:
        raise LogError(f"there is no {name} in {step.output}")
    return [float(each) for each in found]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Pretrain, fine-tune, test; the record."""
    heads = args.heads.split(",")
    if set(heads) - set(HEADS) or len(set(heads)) < len(heads) or heads[0] != "softmax":
        raise StudyError(
            f"--heads takes softmax and then different ones of {','.join(list(HEADS)[1:])}; got {args.heads}"
        )
    for flag in ("pretrain-updates", "updates", "every"):
        if (value := getattr(args, flag.replace("-", "_"))) < 1:
            raise StudyError(f"--{flag} must be at least 1, got {value}")
    seeds = parse_seeds(args.seeds)
    where = Where(args.out)
    names = {str(folder): f"CORPUS/{folder.name}" for folder in (args.text[0], args.labelled)}
    comparison = Comparison(args, "masked-lm", names)

    def run(folder: Path, steps: list[Step]) -> None:
        comparison.run(folder, steps, text=str(args.text[0]), labelled=str(args.labelled))

    steps = prepare_steps(args, where, heads)
    comparison.run(
        where.out,
        steps,
        lambda: choose(args, where),
        text=str(args.text[0]),
        labelled=str(args.labelled),
        examples=args.examples,
    )
    before: dict[str, float | None] = {"none": None}
    tuned: dict[str, list[list[Step]]] = {}
    for name in ("none", *heads):
        pretrained = None
        if name != "none":
            step = pretrain_step(args, where, name)
            run(step.makes.parent.parent, [step])
            before[name], pretrained = last_bits(step), step.makes
        arch = "roberta" if name in ("none", "softmax") else "mhe_roberta"
        tuned[name] = [tune_steps(args, where, name, arch, seed, pretrained) for seed in seeds]
        for steps in tuned[name]:
            run(steps[0].makes.parent.parent, steps)
    return comparison.record(
        about="Masked language models, fine-tuned to classify with few examples",
        data=f"text in {args.pieces:,} pieces; {args.examples or 'all'} labelled sentences to train with",
        setup=f"three layers, d = 128, tied; {args.pretrain_updates:,} updates of {SAMPLES * TOKENS:,} "
        f"tokens, 30% of them masked, one seed; {args.updates:,} updates of 32 sentences; accuracy in per "
        "cent, means over the seeds of the fine-tuning",
        seeds=",".join(map(str, seeds)),
        columns=COLUMNS,
        rows=rows_of(args.pretrain_updates, before, tuned),
    )


def rows_of(
    updates: int, before: dict[str, float | None], tuned: dict[str, list[list[Step]]]
) -> list[dict[str, Any]]:
    """Of the record.

    Args:
        updates: of a pretraining.
        before: bits after each pretraining.
        tuned: of each pretraining and seed, a training and its test.
    """
    test = {name: [accuracies(test, "accuracy")[-1] for _, test in steps] for name, steps in tuned.items()}
    rows: list[dict[str, Any]] = []
    for name, steps in tuned.items():
        mean = fmean(test[name])
        rows.append(
            {
                "pretraining": name,
                "updates": None if name == "none" else updates,
                "bits": before[name],
                "valid": spread([max(accuracies(train, "valid_accuracy")) for train, _ in steps]),
                "test": spread(test[name]),
                "gain": None if name == "none" else mean - fmean(test["none"]),
                "against": None if name in ("none", "softmax") else mean - fmean(test["softmax"]),
                "each": ", ".join(f"{each:.1f}" for each in test[name]),
            }
        )
    return rows


def corpora_from_root(args: argparse.Namespace) -> None:
    args.text, args.labelled = (from_root(args.text[0]), args.text[1]), from_root(args.labelled)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "masked-lm", has_source=False, has_study=False)
    add = parser.add_argument
    add("--updates", type=int, default=200, help="of a fine-tuning (default: %(default)s)")
    add("--text", type=text_folder, required=True, metavar="DIR:ENDING", help="to pretrain on")
    add("--labelled", type=Path, required=True, help="folder of {train,valid,test}.tsv[.xz]")
    add("--heads", default=DEFAULT, help=f"of {', '.join(HEADS)}; softmax first (default: %(default)s)")
    add("--pieces", type=int, default=16384, help="V (default: %(default)s)")
    add("--examples", type=int, default=300, help="to fine-tune on, 0 for all (default: %(default)s)")
    add("--pretrain-updates", type=int, default=2500, help="default: %(default)s")
    add("--every", type=int, default=500, help="updates between validations of a pretraining")
    add("--pretrain-lr", type=float, default=3e-3, help="default: %(default)s")
    add("--lr", type=float, default=5e-4, help="of the fine-tuning (default: %(default)s)")
    add("--seeds", default="1,2,3", help="of the fine-tuning (default: %(default)s)")
    add("--train-flags", default="", help="further flags of fairseq-train, in one word")
    return run_study("masked_lm.py", parser.parse_args(argv), compare, corpora_from_root, (PrepareError,))


if __name__ == "__main__":
    sys.exit(main())
