#!/usr/bin/env python3
"""Train a small language model with a softmax and with a cascade, and draw both learning curves.

    make pretrain-demo
    make pretrain-demo DEMO_FLAGS="--updates 1000 --layers 6 --dim 512"

The text is the bundled English-German corpus, each sentence before its translation; every word is a token.
Both models are trained on the same batches in the same order, for the same number of updates, from the same
seed. The softmax model is fairseq's own ``transformer_lm``. Then each is scored on the test set, and the
time of an update is measured with the models taking turns. ``curves.png``, ``results.json`` and
tensorboard's logs go to ``--out``.

Every command is printed before it runs and listed in ``commands.sh`` there. After an interruption, run it
again: finished steps are skipped, and training continues from its last checkpoint. ``--updates`` may be
raised.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.checkpoints import mend_last_checkpoint  # noqa: E402
from scripts.common.commands import CommandError, Commands, Step, from_root  # noqa: E402
from scripts.common.files import SPLITS  # noqa: E402
from scripts.recipes.watch import Watch  # noqa: E402

#: The first is the reference.
HEADS = ("softmax", "cascade")

#: fairseq reads only checkpoints of its own that the plugin allows: the softmax's commands need it too.
USER_DIR = ["--user-dir", "mhe_fairseq"]

#: Blocks of text, cut anywhere: a batch is a rectangle, the same for both models.
BLOCKS = ["--task", "language_modeling", "--tokens-per-sample", "128", "--sample-break-mode", "none"]


def text_steps(args: argparse.Namespace, work: Path) -> list[Step]:
    """From the corpus to binarised text and a codebook."""
    steps = []
    for split in SPLITS:
        found = [args.corpus / f"{split}.{lang}" for lang in args.langs.split(",")]
        files = [path if path.is_file() else path.with_name(path.name + ".xz") for path in found]
        out = work / "corpus" / split
        words = ["python", "scripts/data/interleave.py", *map(str, files), "--out", str(out)]
        steps.append(Step(f"text-{split}", words, out))
    words = ["python", "scripts/data/prepare_text.py", "--out", str(work / "prepared")]
    words += [word for split in SPLITS for word in (f"--{split}", str(work / "corpus" / split))]
    words += ["--words", str(args.words), "--tokenize", "moses"]
    data = work / "prepared" / "data-bin"
    steps.append(Step("prepare", words, data))
    codes = work / "codes"
    words = ["mhe", "assign", "--data", str(data), "--by", "cluster", "-o", str(codes)]
    steps.append(Step("assign", words, codes))
    return steps


def train_step(args: argparse.Namespace, work: Path, name: str) -> Step:
    """fairseq-train of one model."""
    folder = work / name
    head = ["--arch", "transformer_lm", "--criterion", "cross_entropy"]
    if name == "cascade":
        head = ["--arch", "mhe_transformer_lm", "--mhe-head", "cascade"]
        head += ["--mhe-codebook", str(work / "codes"), "--criterion", "mhe_cross_entropy"]
    words = ["fairseq-train", str(work / "prepared" / "data-bin"), *USER_DIR, *BLOCKS, *head]
    words += ["--decoder-layers", str(args.layers), "--decoder-attention-heads", "4"]
    for width in ("embed", "input", "output"):
        words += [f"--decoder-{width}-dim", str(args.dim)]
    # Not tied to the embeddings: so the cascade learnt faster (after 100 updates 7.54 bits a training token
    # against 8.06 tied, seed 1), and the softmax has as many parameters of its own.
    words += ["--decoder-ffn-embed-dim", str(4 * args.dim), "--dropout", str(args.dropout)]
    words += ["--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--clip-norm", "1.0"]
    words += ["--lr", "2e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "100"]
    # --required-batch-size-multiple 1: the default, 8, throws away the last blocks of every set.
    # --update-epoch-batch-itr True: without it a resumed run trains on other batches than one that was not.
    words += ["--max-tokens", str(args.tokens), "--required-batch-size-multiple", "1"]
    words += ["--update-epoch-batch-itr", "True", "--max-update", str(args.updates), "--seed", str(args.seed)]
    words += ["--cpu", "--num-workers", "0"]
    # --validate-interval 1000 (epochs): validation is by updates only. Saving brings one along, but not where
    # an epoch ends too.
    every = str(args.validate_every)
    words += ["--validate-interval", "1000", "--validate-interval-updates", every]
    words += ["--save-interval-updates", every]
    words += [
        "--keep-interval-updates",
        "1",
        "--no-epoch-checkpoints",
        "--save-dir",
        str(folder / "checkpoints"),
    ]
    words += ["--tensorboard-logdir", str(work / "tensorboard" / name)]
    interval = min(args.updates, max(1, args.validate_every // 5))
    words += ["--log-format", "json", "--log-interval", str(interval)]
    made = folder / "checkpoints" / "checkpoint_best.pt"
    return Step(f"train-{name}", words, made, folder / "train.log", append=True)


def score_step(args: argparse.Namespace, work: Path, name: str) -> Step:
    """fairseq-eval-lm of one model, on the test set."""
    folder = work / name
    words = ["fairseq-eval-lm", str(work / "prepared" / "data-bin"), *USER_DIR, *BLOCKS]
    words += ["--path", str(folder / "checkpoints" / "checkpoint_best.pt"), "--gen-subset", "test"]
    words += ["--max-tokens", str(args.tokens), "--required-batch-size-multiple", "1"]
    words += ["--cpu", "--num-workers", "0", "--log-format", "none"]
    return Step(f"test-{name}", words, folder / "test.log", folder / "test.log")


def demo(args: argparse.Namespace, console: Console) -> None:
    """Run every step.

    Raises:
        CommandError: bad input, or a command failed.
    """
    check(args)
    work: Path = args.out
    kept = ("corpus", "langs", "words", "layers", "dim", "dropout", "tokens", "validate_every", "seed")
    settings = {
        name: str(value) if isinstance(value := getattr(args, name), Path) else value for name in kept
    }

    def say(line: str) -> None:
        # No wrapping: a line copied from the terminal should run.
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    commands = Commands(work, settings, say)
    for step in text_steps(args, work):
        commands.run(step)
    for name in HEADS:
        step = train_step(args, work, name)
        assert step.output is not None
        checkpoints = step.makes.parent

        def before(checkpoints: Path = checkpoints) -> None:
            mend_last_checkpoint(checkpoints, say)
            if (checkpoints / "checkpoint_last.pt").is_file():
                say(f"continues from {checkpoints / 'checkpoint_last.pt'}")

        with Watch(step.output, name, args.updates, console) as watch:
            commands.run(step, before, watch)
    for name in HEADS:
        commands.run(score_step(args, work, name))
    last = [str(work / name / "checkpoints" / "checkpoint_last.pt") for name in HEADS]
    times = work / "times.log"
    commands.run(Step("time", ["python", "scripts/study/time_updates.py", *last], times, times))
    words = ["python", "scripts/study/report_pretrain.py", "--work", str(work)]
    commands.run(Step("report", words, work / "curves.png"), always=True)


def check(args: argparse.Namespace) -> None:
    """Raises:
    CommandError: bad values, or something is not installed.
    """
    for name, least in (
        ("updates", 1),
        ("validate_every", 1),
        ("layers", 1),
        ("tokens", 128),
        ("words", 12),
        ("seed", 0),
    ):
        if getattr(args, name) < least:
            flag = "--" + name.replace("_", "-")
            raise CommandError(f"{flag} must be at least {least}, got {getattr(args, name)}")
    if args.dim < 4 or args.dim % 4:
        raise CommandError(f"--dim must be a multiple of 4, the attention heads, got {args.dim}")
    if not 0 <= args.dropout < 1:
        raise CommandError(f"--dropout must be at least 0 and below 1, got {args.dropout}")
    for split in SPLITS:
        for lang in args.langs.split(","):
            name = f"{split}.{lang}"
            if not any((args.corpus / each).is_file() for each in (name, f"{name}.xz")):
                raise CommandError(f"there is no {name} or {name}.xz in {args.corpus}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise CommandError(
            "matplotlib is not installed; run 'make pretrain-demo', or install it with: "
            "pip install -c constraints.txt -e '.[plot]'"
        ) from None
    for program in ("fairseq-train", "mhe"):
        if shutil.which(program) is None:
            raise CommandError(
                f"{program} is not on the PATH; run 'make pretrain-demo', or activate .venv first"
            )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--updates", type=int, default=400, help="updates of each model (default: %(default)s)")
    add("--words", type=int, default=12_000, help="size of the vocabulary (default: %(default)s)")
    add("--layers", type=int, default=2, help="layers of each model (default: %(default)s)")
    add("--dim", type=int, default=256, help="width of each model (default: %(default)s)")
    add("--dropout", type=float, default=0.1, help="dropout of each model (default: %(default)s)")
    add("--tokens", type=int, default=2048, help="tokens in a batch (default: %(default)s)")
    add("--validate-every", type=int, default=50, help="updates between validations (default: %(default)s)")
    add("--seed", type=int, default=1, help="of weights, batches and dropout (default: %(default)s)")
    add("--corpus", type=Path, default=ROOT / "examples" / "translation" / "data", help="folder of the text")
    add(
        "--langs",
        default="en,de",
        help="languages of its files, {train,valid,test}.LANG[.xz] (default: %(default)s)",
    )
    add("--out", type=Path, default=ROOT / "pretrain-demo", help="folder to write (default: pretrain-demo)")
    args = parser.parse_args(argv)
    args.corpus, args.out = from_root(args.corpus), from_root(args.out)
    os.chdir(ROOT)
    # So that a command that is running ends with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        demo(args, Console() if sys.stdout.isatty() else Console(width=110))
    except (CommandError, OSError) as error:
        print(f"pretrain_demo.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pretrain_demo.py: interrupted; the same command continues where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
