"""`mhe convert`: a trained model with another head, or for another dictionary."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.convert_languages import add_language_args, check_not_given
from mhe_fairseq.cli.output import check_output, write_checkpoint
from mhe_fairseq.cli.prototypes import check_prototypes
from mhe_fairseq.errors import MHEError

#: As ``models.convert.HEADS``, which takes seconds to import.
HEADS = ("cascade", "sampling", "softmax")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe convert`."""
    parser = subparsers.add_parser(
        "convert",
        help="make a checkpoint with another head of a trained model",
        description="Make a checkpoint with one of our heads of a trained model: fairseq's own transformer, "
        "transformer_lm, roberta or bart, or one of ours. Of a softmax or sampling head, sampling and "
        "softmax score as before, and a cascade keeps the rows of tokens, and its group head is fitted to "
        "the probabilities that the softmax gives groups. Of a cascade or product head a softmax or sampling "
        "head is made whose rows, a table of its own, are fitted to the probabilities of tokens. No labels "
        "are needed; the optimizer's state is left out. Without --head, and with --data of another "
        "dictionary: the same model, fairseq's or one of ours with any head, for that dictionary.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as checkpoints/checkpoint_best.pt")
    parser.add_argument(
        "--data",
        required=True,
        metavar="BIN",
        help="directory written by fairseq-preprocess with the model's dictionaries: the training text is "
        "read for the codebook and for what is fitted, the validation text to compare losses; or with the "
        "dictionaries that the model shall have",
    )
    parser.add_argument(
        "--head", choices=HEADS, help="head to convert to (default: the same model for another dictionary)"
    )
    parser.add_argument(
        "--old-data",
        metavar="BIN",
        help="another dictionary: directory with the model's own (default: the data it was trained on)",
    )
    add_language_args(parser)
    parser.add_argument(
        "--codebook",
        metavar="FILE",
        help="codebook from mhe assign (default: clusters of the training text, written beside the output)",
    )
    parser.add_argument(
        "--group-prototypes",
        type=int,
        metavar="M",
        help="cascade: rows of the group head for a group, whose exponentials are added (default 8)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=131_072,
        metavar="N",
        help="what is fitted, a cascade's group head or the rows of a softmax, on N tokens of the training "
        "text (default 131072); for a group head each takes 4 (d + L1) bytes of memory",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the codebook and the fit (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default cpu)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, write, say what was written and what it costs.

    Raises:
        MHEError: a checkpoint that cannot be converted, data or a codebook that does not fit, a bad output
            path; nothing is written then.
    """
    started = time.monotonic()
    source, output = Path(args.checkpoint), Path(args.output)
    _check_numbers(args)
    if not source.is_file():
        raise MHEError(f"there is no checkpoint {source}; fairseq-train writes them to its --save-dir")
    codes = output.with_suffix(".codes")
    for path in (output, codes):
        check_output(path, "converted.pt")
        if path.exists():
            if path.samefile(source):
                raise MHEError(f"the output {path} is the checkpoint to convert; give another output")
            if not args.force and (path == output or args.codebook is None):
                raise MHEError(f"the output {path} exists; give another one, or --force to replace it")

    if args.head is None:
        from mhe_fairseq.cli.convert_dictionary import run_dictionary

        return run_dictionary(args, source, output, codes)

    from omegaconf import OmegaConf

    from mhe_fairseq.cli.convert_report import report
    from mhe_fairseq.cli.convert_run import convert

    with Bars() as bars:
        done = convert(args, source, output, bars)
    # What fairseq writes is plain.
    plain = {**done.state, "cfg": OmegaConf.to_container(done.state["cfg"], resolve=True, enum_to_str=True)}
    write_checkpoint(output, plain, codes, done.codebook if done.codebook_is_new else None)
    report(done, args, output, codes, time.monotonic() - started)
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers that no conversion can use."""
    if args.tokens < 2:
        raise MHEError(f"--tokens is a number of tokens to fit a head on, at least 2; got {args.tokens}")
    if not 0 <= args.seed < 2**63:
        raise MHEError(f"--seed must be a whole number from 0 to 2**63 - 1, got {args.seed}")
    if args.head is None:
        for flag, value in (("--codebook", args.codebook), ("--group-prototypes", args.group_prototypes)):
            if value is not None:
                raise MHEError(f"{flag} {value} is for another head; say which with --head")
    else:
        check_not_given(args)
    if args.group_prototypes is not None:
        if args.head != "cascade":
            raise MHEError(f"--group-prototypes is for --head cascade; the head is {args.head}")
        check_prototypes(args)
