"""`mhe label`: the best labels of documents, by a checkpoint of `--task mhe_multilabel`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from mhe_fairseq.bench.machine import find_device
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.checkpoint import building, read_with_data, set_up_task
from mhe_fairseq.cli.output import check_output, write_whole
from mhe_fairseq.criterions.label_ranking import PLACES, RankingSums, percentages
from mhe_fairseq.errors import MHEError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe label`."""
    parser = subparsers.add_parser(
        "label",
        help="print the best labels of documents, with scores",
        description="Print a line for every document of a set, in its order: its best labels, each with "
        "':' and its score, best first. Scores of a cascade or sampling head are a label's share of the "
        "document's labels, those of a softmax head (one against all) the probability that it is right. At "
        "the end, on stderr, P@k, nDCG@k and PSP@k of the documents that have labels.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--data", required=True, metavar="BIN", help="with input0/ and label/")
    parser.add_argument("--subset", default="test", metavar="SET", help="(default test)")
    parser.add_argument("-k", type=int, default=5, metavar="K", help="labels of a document (default 5)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="documents (default 64)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default cpu)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there in place of stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Label the documents.

    Raises:
        MHEError: bad numbers; a checkpoint, data or output that cannot be used. A file that was there stays.
    """
    for name in ("k", "batch_size"):
        if getattr(args, name) < 1:
            flag = "-k" if name == "k" else "--batch-size"
            raise MHEError(f"{flag} must be at least 1, got {getattr(args, name)}")
    if args.output is not None:
        check_output(Path(args.output), "labels.txt")
    path = Path(args.checkpoint)
    if not path.is_file():
        raise MHEError(f"there is no checkpoint {path}; fairseq-train writes them to its --save-dir")
    device = find_device(args.device)
    model, task = load(path, args.data)
    model.to(device)
    task.load_dataset(args.subset)
    sums = RankingSums()

    def write(file: IO[str]) -> None:
        with Bars() as bars:
            for line in lines(model, task, args, device, sums, bars):
                file.write(line + "\n")

    if args.output is None:
        write(sys.stdout)
    else:
        write_whole(Path(args.output), lambda to: _to_file(to, write))
    if sums.documents:
        found = percentages(sums.sums, sums.documents)
        told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
        print(f"{sums.documents:,} documents with labels: {told}", file=sys.stderr)
    return 0


def load(path: Path, data: str) -> tuple[Any, Any]:
    """The model of a checkpoint in eval mode, and its task.

    Raises:
        MHEError: a checkpoint of another task, or data that do not fit it.
    """
    from fairseq import checkpoint_utils

    state = read_with_data(path, data)
    name = state["cfg"].task._name
    if name != "mhe_multilabel":
        raise MHEError(
            f"checkpoint {path} is of --task {name}; `mhe label` is for --task mhe_multilabel, which gives "
            "documents labels"
        )
    task = set_up_task(state, path)
    with building(path, data):
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], task=task, state=state)
    return models[0].eval(), task


def lines(
    model: Any, task: Any, args: argparse.Namespace, device: torch.device, sums: RankingSums, bars: Bars
) -> Iterator[str]:
    """Of every document its labels and scores; what measures are made of is added to ``sums``."""
    dataset, names = task.datasets[args.subset], task.label_names
    inverse, total = task.inverse_propensities(), len(task.datasets[args.subset])
    for begin in range(0, total, args.batch_size):
        end = min(begin + args.batch_size, total)
        batch = dataset.collater([dataset[index] for index in range(begin, end)])
        tokens = batch["net_input"]["src_tokens"].to(device)
        scores, labels = (each.cpu() for each in model.best_labels(tokens, max(args.k, PLACES[-1])))
        sums.add(labels, batch["target"], inverse)
        for row, values in zip(labels[:, : args.k].tolist(), scores.exp().tolist(), strict=True):
            yield " ".join(f"{names[label]}:{value:.4f}" for label, value in zip(row, values, strict=False))
        bars.update("labelling", end, total)


def _to_file(path: Path, write: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        write(file)
