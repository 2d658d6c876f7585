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
        description="Write a checkpoint of --arch mhe_transformer, mhe_transformer_lm, mhe_roberta or "
        "mhe_bart with --mhe-head softmax or sampling as one of fairseq's own transformer, transformer_lm, "
        "roberta or bart: "
        "fairseq's commands, without --user-dir, translate and score as before. The optimizer's state is "
        "left out.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="such as checkpoints/checkpoint_best.pt")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument(
        "--body",
        action="store_true",
        help="with any head, of --arch mhe_roberta, mhe_bart or one with tied embeddings: leave the head "
        "out, to train the rest on, with a softmax tied to the embeddings",
    )
    parser.add_argument(
        "--as",
        dest="layer",
        choices=["softmax"],
        default="softmax",
        help="the output layer to write, fairseq's softmax; no other head equals one, so it is refused",
    )
    parser.add_argument(
        "--namespace",
        action="store_true",
        help="of a transformer or roberta write the options in fairseq's own type, argparse.Namespace, which "
        "torch since 2.6 refuses to load unless told otherwise (default: a type with the same attributes)",
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

    stock = to_stock(read_checkpoint(source), f"checkpoint {source}", args.body, args.namespace)
    write_whole(output, lambda path: torch.save(stock.state, path))
    _report(stock, output)
    return 0


def _report(stock: StockCheckpoint, path: Path) -> None:
    """Say what was written, and how to use it."""
    print(f"{path}: fairseq's own --arch {stock.arch}, {path.stat().st_size:,} bytes; it needs no --user-dir")
    if stock.trained:
        tied = "not tied"
        if stock.tied:
            whose = "the decoder's" if stock.kind == "translation" else "the"
            tied = f"tied to {whose} embeddings"
        layer = f"once a {stock.head} head: "
    else:
        tied = "tied to the embeddings and not trained: to train on, not to predict tokens"
        layer = "" if stock.head is None else f"in place of a {stock.head} head: "
    print(
        f"  output layer, {layer}V x d = {stock.vocab_size:,} x {stock.dim:,}, "
        f"{str(stock.dtype).removeprefix('torch.')}, {tied}"
    )
    denoises = "denoising" in str((stock.state["cfg"].get("task") or {}).get("_name"))
    command = {"translation": _generate, "language model": _score, "masked language model": _finetune}[
        stock.kind
    ]
    if not stock.trained:
        command = _finetune if stock.masked or denoises else _train_on
    elif denoises:
        command = _translate
    print(f"  {shlex.join(command(stock, path))}")


def _finetune(stock: StockCheckpoint, path: Path) -> list[str]:
    """The command that goes on from the file at ``path``, to be completed."""
    positions = _model_options(stock).get("max_positions") or 512
    return [
        "fairseq-train", "LABELLED-DATA", "--task", "sentence_prediction", "--criterion",
        "sentence_prediction", "--arch", stock.arch, "--max-positions", str(positions), "--restore-file",
        str(path), "--reset-optimizer", "--reset-dataloader", "--reset-meters", "...",
    ]  # fmt: skip


def _train_on(stock: StockCheckpoint, path: Path) -> list[str]:
    """The command that trains the file at ``path`` on with the softmax, to be completed."""
    task = stock.state["cfg"].get("task") or {}
    name = str(task.get("_name") or "translation").removeprefix("mhe_")
    return [
        "fairseq-train", _data(task, "DATA-BIN"), "--task", name, "--arch", stock.arch,
        *_sharing(stock), "--finetune-from-model", str(path), "...",
    ]  # fmt: skip


def _sharing(stock: StockCheckpoint) -> list[str]:
    """The flag by which the model's tables are one, which fairseq does not take from a checkpoint."""
    has = _model_options(stock)
    names = ("share_all_embeddings", "share_decoder_input_output_embed")
    return ["--" + name.replace("_", "-") for name in names if has.get(name)][:1]


def _model_options(stock: StockCheckpoint) -> dict[str, Any]:
    from mhe_fairseq.models.stock_options import as_dict

    return as_dict(stock.state["cfg"]["model"])


def _translate(stock: StockCheckpoint, path: Path) -> list[str]:
    """The command that fine-tunes a pretraining at ``path`` to translate or sum up, to be completed."""
    return [
        "fairseq-train", "DATA-BIN", "--task", "translation", "--truncate-source", "--arch", stock.arch,
        "--finetune-from-model", str(path), "...",
    ]  # fmt: skip


def _generate(stock: StockCheckpoint, path: Path) -> list[str]:
    """The command that translates the test set with the file at ``path``."""
    task = stock.state["cfg"].get("task") or {}
    line = ["fairseq-generate", _data(task, "DATA-BIN")]
    if task.get("_name", "translation") != "translation":
        line += ["--task", str(task["_name"])]
    if task.get("source_lang") and task.get("target_lang"):
        line += ["-s", str(task["source_lang"]), "-t", str(task["target_lang"])]
    # fairseq's default multiple, 8, throws away the last sentences.
    return [*line, "--path", str(path), "--beam", "5", "--required-batch-size-multiple", "1"]


def _score(stock: StockCheckpoint, path: Path) -> list[str]:
    """The command that scores the test set with the file at ``path``."""
    task = stock.state["cfg"].get("task") or {}
    line = ["fairseq-eval-lm", _data(task, "LM-DATA-BIN"), "--path", str(path)]
    if task.get("tokens_per_sample"):
        line += ["--tokens-per-sample", str(task["tokens_per_sample"])]
    return line


def _data(task: dict[str, Any], otherwise: str) -> str:
    """The data that the model was trained on, if it is here."""
    data = str(task.get("data") or "")
    return data if data and Path(data).is_dir() else otherwise
