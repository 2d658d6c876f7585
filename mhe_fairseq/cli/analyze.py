"""`mhe analyze`: where a trained model loses probability, by digit, frequency of the token, and group."""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mhe_fairseq.analysis.bands import Bands
from mhe_fairseq.analysis.conclusion import compare, conclude
from mhe_fairseq.analysis.loss_parts import LossParts
from mhe_fairseq.analysis.pairs import PairSums
from mhe_fairseq.analysis.summary import Summary, summarise
from mhe_fairseq.bench.machine import find_device
from mhe_fairseq.bench.report import make_console
from mhe_fairseq.cli.analyze_report import Report
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.output import check_output, write_whole
from mhe_fairseq.coding import Codebook, plan_lengths, symbols_fingerprint
from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from mhe_fairseq.cli.analyze_data import Subset
    from mhe_fairseq.cli.analyze_model import LoadedModel


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe analyze`."""
    parser = subparsers.add_parser(
        "analyze",
        help="where a trained model loses probability",
        description="Score a text with a trained model, with any head or with fairseq's own softmax, and "
        "show where its loss is: by digit, by frequency of the token, and by groups of tokens that are "
        "confused. Also show how well the model is calibrated, and whether the end of a sentence gets its "
        "share of the probability.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as checkpoints/checkpoint_best.pt")
    parser.add_argument("data", metavar="DATA", help="directory written by fairseq-preprocess")
    parser.add_argument(
        "--subset", default="valid", metavar="SPLIT", help="the split to score (default valid)"
    )
    parser.add_argument(
        "--against", metavar="CHECKPOINT", help="a second model to compare with, on the same data"
    )
    parser.add_argument(
        "--codebook",
        metavar="FILE",
        help="report by the digits of this codebook, from `mhe assign` (default: the head's own; without a "
        "head, planned lengths in dictionary order)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=4096, metavar="N", help="tokens of a batch (default 4096)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="score a sample of N target tokens (default: all)"
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="K", help="pairs of groups to show (default 10)"
    )
    parser.add_argument("--png", metavar="FILE", help="draw a picture too (needs matplotlib)")
    parser.add_argument("--json", metavar="FILE", help="write every number too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default cpu)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score, print, draw.

    Raises:
        MHEError: a bad checkpoint, data, codebook, number or output path; no output is touched then.
    """
    _check_args(args)
    device = find_device(args.device)
    # Below: what imports fairseq, which takes seconds.
    from mhe_fairseq.cli.analyze_data import Subset, check_folders
    from mhe_fairseq.cli.analyze_model import LoadedModel, same_task

    check_folders(args.data)
    paths = [Path(path) for path in (args.checkpoint, args.against) if path is not None]
    models = [LoadedModel(path, args.data, device) for path in paths]
    for other in models[1:]:
        same_task(models[0], other)
    book, source = _codebook(args.codebook, models)
    subset = Subset(models[0].task, args.data, args.subset)
    bands = Bands(subset.training_counts(), models[0].task.target_dictionary.eos())
    with warnings.catch_warnings():
        # torch's, of the masks that fairseq gives to its attention.
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
        sums = [PairSums(subset.tokens_of_pairs(), models[0].task.target_dictionary.eos()) for _ in models]
        parts, left_out = _score(models, subset, book, args, sums)
    if not parts[0].tokens:
        raise MHEError(
            f"the split {args.subset} of {args.data} has no target tokens; name another with --subset"
        )
    summaries = _summaries(parts, bands, args.top, models)
    sentences = [conclude(summaries[0])]
    sentences += [compare(*summaries)] if len(summaries) == 2 else []
    report = Report(
        names=_names(models),
        summaries=summaries,
        symbols=models[0].symbols(),
        sentences=sentences,
        pairs=[each.summaries() for each in sums],
        about={
            "checkpoints": [str(path) for path in paths],
            "models": [type(each.model).__name__ for each in models],
            "heads": [each.head for each in models],
            "data": args.data,
            "subset": args.subset,
            "limit": args.limit,
            "left_out": left_out,
            "codebook": {"lengths": book.lengths, "fingerprint": book.fingerprint, "source": source},
        },
    )
    try:
        _write(report, args)
    finally:
        # A disk that is full must not cost the result of a long pass.
        report.show(make_console())
    return 0


def _check_args(args: argparse.Namespace) -> None:
    """Refuse before the work what would be refused after it."""
    for name in ("max_tokens", "limit", "top"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise MHEError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    taken = {Path(path).resolve() for path in (args.checkpoint, args.against, args.codebook) if path}
    for text, example in ((args.png, "analysis.png"), (args.json, "analysis.json")):
        if text is not None:
            check_output(Path(text), example)
            if Path(text).resolve() in taken:
                raise MHEError(
                    f"the output {text} is a file that is read or written already; give another one"
                )
            taken.add(Path(text).resolve())
    if args.png is not None:
        # It tells about every font it finds where fairseq has opened the root logger.
        logging.getLogger("matplotlib").setLevel(logging.WARNING)
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError:
            raise MHEError(
                "--png needs matplotlib, which is not installed; install it with: pip install "
                "-c constraints.txt -e '.[plot]'"
            ) from None


def _codebook(path: str | None, models: list[LoadedModel]) -> tuple[Codebook, str]:
    """The digits to report by, and where they are from."""
    symbols = models[0].symbols()
    if path is not None:
        book = Codebook.load(path)
        book.check_dictionary(symbols_fingerprint(symbols), len(symbols), f"codebook file {path}")
        return book, f"codebook file {path}"
    for model in models:
        if model.codebook is not None:
            return model.codebook, f"the codebook of {model.path}"
    return Codebook(plan_lengths(len(symbols)), vocab_size=len(symbols)), "planned lengths, dictionary order"


@torch.inference_mode()
def _score(
    models: list[LoadedModel],
    subset: Subset,
    book: Codebook,
    args: argparse.Namespace,
    of_pairs: list[PairSums],
) -> tuple[list[LossParts], int]:
    """Sums of each model over the same tokens, and how many sentences were too long for the models."""
    from mhe_fairseq.cli.analyze_model import least_positions

    limit = args.limit
    indices = subset.indices(least_positions(models), drawn=limit is not None)
    batches = subset.batches(indices, args.max_tokens)
    parts = [LossParts(book) for _ in models]
    # A sample of a batch: it lists the longest sentences first.
    drawn = torch.Generator().manual_seed(1)
    with Bars() as bars:
        for number, sample in enumerate(subset.samples(batches)):
            kept = None
            told = models[0].in_source(sample)
            pair = subset.pair_of(batches[number]) if subset.pairs else None
            for model, sums, own in zip(models, parts, of_pairs, strict=True):
                features, target = model.features(sample)
                in_source = told
                left = len(target) if limit is None else limit - sums.tokens
                if left < len(target):
                    kept = torch.randperm(len(target), generator=drawn)[:left] if kept is None else kept
                    features, target = features[kept.to(target.device)], target[kept.to(target.device)]
                    in_source = None if told is None else told[kept]
                for log_probs, rows in model.log_probs(features, target, book.size):
                    sums.update(log_probs, target[rows], None if in_source is None else in_source[rows])
                    if pair is not None:
                        own.update(pair, log_probs, target[rows])
            if limit is not None:
                bars.update("tokens", parts[0].tokens, limit)
                if parts[0].tokens >= limit:
                    break
            else:
                bars.update("batches", number + 1, len(batches))
    return parts, len(subset) - len(indices)


def _summaries(parts: list[LossParts], bands: Bands, top: int, models: list[LoadedModel]) -> list[Summary]:
    """Of every model; the second one has the first one's pairs of groups."""
    summaries: list[Summary] = []
    for each, model in zip(parts, models, strict=True):
        pairs = [(pair.gold, pair.predicted) for pair in summaries[0].confused] if summaries else None
        summaries.append(summarise(each, bands, top, pairs))
        if not math.isfinite(summaries[-1].total.loss):
            raise MHEError(
                f"the model of checkpoint {model.path} has a loss of {summaries[-1].total.loss}: some "
                "probabilities are NaN or zero; use a checkpoint from before its training diverged"
            )
    return summaries


def _names(models: list[LoadedModel]) -> list[str]:
    """Short ones, which differ."""
    heads = [each.head for each in models]
    if len(set(heads)) == len(heads):
        return heads
    return [f"{which} {head}" for which, head in zip(("first", "second"), heads, strict=True)]


def _write(report: Report, args: argparse.Namespace) -> None:
    if args.json is not None:
        text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        content = (text + "\n").encode("utf-8", "backslashreplace")
        write_whole(Path(args.json), lambda path: path.write_bytes(content))
    if args.png is not None:
        from mhe_fairseq.cli.analyze_plot import draw

        picture = draw(report)
        write_whole(Path(args.png), lambda path: path.write_bytes(picture))
