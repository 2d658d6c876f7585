"""`mhe export`: a trained model as a checkpoint that fairseq reads without the plugin."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhe_fairseq.cli.checkpoint import read_checkpoint
from mhe_fairseq.cli.output import check_output, write_whole
from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from mhe_fairseq.models.export import StockCheckpoint


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe export`."""
    parser = subparsers.add_parser(
        "export",
        help="write a checkpoint that fairseq reads without the plugin",
        description="Write a checkpoint of --arch mhe_transformer or mhe_roberta with --mhe-head softmax or "
        "sampling as one of fairseq's own transformer or roberta: fairseq-generate, without --user-dir, "
        "translates and scores as before. The optimizer's state is left out.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as checkpoints/checkpoint_best.pt")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument(
        "--body",
        action="store_true",
        help="with --arch mhe_roberta and any head: leave the head out, to fine-tune the rest",
    )
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, write, say what was written.

    Raises:
        MHEError: no such checkpoint, one that is damaged or cannot be exported, a bad output path; nothing is
            written then.
    """
    source, output = Path(args.checkpoint), Path(args.output)
    if not source.is_file():
        raise MHEError(f"there is no checkpoint {source}; fairseq-train writes them to its --save-dir")
    check_output(output, "stock.pt")
    if output.exists():
        if output.samefile(source):
            raise MHEError(f"the output {output} is the checkpoint to export; give another output")
        if not args.force:
            raise MHEError(f"the output {output} exists; give another one, or --force to replace it")

    import torch

    from mhe_fairseq.models.export import to_stock

    stock = to_stock(read_checkpoint(source), f"checkpoint {source}", args.body)
    write_whole(output, lambda path: torch.save(stock.state, path))
    _report(stock, output)
    return 0


def _report(stock: StockCheckpoint, path: Path) -> None:
    """Say what was written, and how to use it."""
    print(f"{path}: fairseq's own --arch {stock.arch}, {path.stat().st_size:,} bytes; it needs no --user-dir")
    if stock.trained:
        tied = "not tied"
        if stock.tied:
            tied = "tied to the embeddings" if stock.masked else "tied to the decoder's embeddings"
        layer = f"once a {stock.head} head: "
    else:
        tied = "tied to the embeddings and not trained: to fine-tune, not to predict masked tokens"
        layer = "" if stock.head is None else f"in place of a {stock.head} head: "
    print(
        f"  output layer, {layer}V x d = {stock.vocab_size:,} x {stock.dim:,}, "
        f"{str(stock.dtype).removeprefix('torch.')}, {tied}"
    )
    print(f"  {shlex.join(_finetune(stock, path) if stock.masked else _generate(stock, path))}")


def _finetune(stock: StockCheckpoint, path: Path) -> list[str]:
    """The command that goes on from the file at ``path``, to be completed."""
    positions = stock.state["cfg"]["model"].get("max_positions") or 512
    return [
        "fairseq-train", "LABELLED-DATA", "--task", "sentence_prediction", "--criterion",
        "sentence_prediction", "--arch", stock.arch, "--max-positions", str(positions), "--restore-file",
        str(path), "--reset-optimizer", "--reset-dataloader", "--reset-meters", "...",
    ]  # fmt: skip


def _generate(stock: StockCheckpoint, path: Path) -> list[str]:
    """The command that translates the test set with the file at ``path``."""
    task = stock.state["cfg"].get("task") or {}
    data = str(task.get("data") or "")
    line = ["fairseq-generate", data if data and Path(data).is_dir() else "DATA-BIN"]
    if task.get("_name", "translation") != "translation":
        line += ["--task", str(task["_name"])]
    if task.get("source_lang") and task.get("target_lang"):
        line += ["-s", str(task["source_lang"]), "-t", str(task["target_lang"])]
    # fairseq's default multiple, 8, throws away the last sentences.
    return [*line, "--path", str(path), "--beam", "5", "--required-batch-size-multiple", "1"]
