#!/usr/bin/env python3
"""Print the quickstart's results: BLEU with its signature, samples, the output layer's cost, the commands.

    python scripts/recipes/report_quickstart.py --work quickstart --src en --tgt de

reads the folder that ``scripts/recipes/quickstart.sh`` wrote, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import sacrebleu
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

# The output layers are compared over a batch of so many tokens, that of the long quickstart.
BATCH_TOKENS = 4096


class ReportError(Exception):
    """Bad input, said in one sentence."""


def read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ReportError(f"there is no {path}; scripts/recipes/quickstart.sh makes it")
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def scores(hypotheses: list[str], references: list[str]) -> Table:
    """BLEU and chrF2 of detokenised text, with the signatures that pin how they were computed."""
    table = Table(title=f"{len(hypotheses)} test sentences", title_justify="left")
    for name in ("metric", "score", "signature"):
        table.add_column(name, overflow="fold")
    for metric in (sacrebleu.BLEU(), sacrebleu.CHRF()):
        result = metric.corpus_score(hypotheses, [references])
        detail = f" (brevity penalty {result.bp:.3f})" if hasattr(result, "bp") else ""
        table.add_row(result.name, f"{result.score:.2f}{detail}", str(metric.get_signature()))
    return table


def samples(sources: list[str], references: list[str], hypotheses: list[str], count: int = 5) -> Table:
    """Sentences at equal distances through the test set: not picked by how well they came out."""
    table = Table(title="samples", title_justify="left", show_header=False, show_lines=True)
    table.add_column()
    table.add_column(overflow="fold")
    count = min(count, len(sources))
    for i in range(count):
        n = (2 * i + 1) * len(sources) // (2 * count)
        texts = (sources[n], references[n], f"[bold]{escape(hypotheses[n])}[/bold]")
        table.add_row(
            f"{n + 1} source\nreference\n[bold]hypothesis[/bold]",
            "\n".join((escape(texts[0]), escape(texts[1]), texts[2])),
        )
    return table


def kept_for_backward(loss: Any, parameters: list[Tensor]) -> int:
    """Bytes that a computation keeps until its backward pass, besides the parameters themselves."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()  # keeps the graph, and so the tensors and their addresses, until counted
        total = sum(kept.values())
    del result
    return total


def output_layer(head: Any, tokens: int = BATCH_TOKENS) -> Table:
    """The head's parameters and memory beside those of a V x d softmax, both measured here."""
    dim, vocab = head.dim, head.vocab_size
    features = torch.randn(tokens, dim, requires_grad=True)
    target = torch.randint(vocab, (tokens,))
    weight = torch.zeros(vocab, dim, requires_grad=True)

    def head_loss() -> Tensor:
        loss = head(features, target, smoothing=True)
        return loss.nll.sum() + loss.smooth.sum()

    def softmax_loss() -> Tensor:
        # As fairseq's label_smoothed_cross_entropy computes it.
        lprobs = F.log_softmax(F.linear(features, weight), dim=-1)
        return -lprobs.gather(-1, target[:, None]).sum() - lprobs.sum()

    head.train()
    own = head.output_parameters()
    rows = [
        ("parameters", f"{own:,}", f"{weight.numel():,}", own / weight.numel()),
        ("their memory, fp32", mebibytes(4 * own), mebibytes(4 * weight.numel()), own / weight.numel()),
    ]
    kept = kept_for_backward(head_loss, [features, *head.parameters()])
    kept_softmax = kept_for_backward(softmax_loss, [features, weight])
    rows.append(
        (
            f"kept for backward, batch of {tokens:,} tokens",
            mebibytes(kept),
            mebibytes(kept_softmax),
            kept / kept_softmax,
        )
    )
    title = f"output layer, V = {vocab:,} pieces, d = {dim}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = "a softmax tied to the input embeddings has no parameters of its own, and the same logits"
    for name in ("", type(head).__name__, "softmax", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    for label, ours, theirs, ratio in rows:
        table.add_row(label, ours, theirs, f"{ratio:.2f}")
    return table


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def load_head(checkpoint: Path, data: Path, user_dir: str) -> Any | None:
    """The output head of a trained model; None when the model has none (a stock architecture)."""
    # Imported late: it takes seconds, and bad input should be told at once.
    from fairseq import checkpoint_utils, utils

    utils.import_user_module(Namespace(user_dir=user_dir or None))
    # After the plugin, which fairseq refuses once it is imported.
    from mhe_fairseq.cli.checkpoint import read_with_data, set_up_task

    state = read_with_data(checkpoint, str(data))
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], task=set_up_task(state, checkpoint), state=state
    )
    return getattr(models[0].decoder, "head", None)


def times(folder: Path) -> Table:
    """Seconds of each step, as the steps themselves noted them."""
    table = Table(title="wall time", title_justify="left")
    for name in ("step", "seconds", ""):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    total = 0
    for step in ("prepare", "preprocess", "assign", "train", "translate"):
        if not (folder / step).is_file():
            continue
        _, seconds, note = (read_lines(folder / step) + ["", ""])[:3]
        total += int(seconds)
        table.add_row(step, seconds, note)
    table.add_row("all", str(total), "")
    return table


def report(work: Path, src: str, tgt: str, user_dir: str, console: Console) -> None:
    """Print everything."""
    sources = read_lines(work / "data" / "text" / f"test.{src}")
    references = read_lines(work / "data" / "text" / f"test.{tgt}")
    hypotheses = read_lines(work / f"hypotheses.{tgt}")
    if not len(sources) == len(references) == len(hypotheses):
        raise ReportError(
            f"the test set has {len(sources)} sources, {len(references)} references and "
            f"{len(hypotheses)} translations; there must be as many of each"
        )
    head = load_head(work / "checkpoints" / "checkpoint_best.pt", work / "data-bin", user_dir)
    console.print(samples(sources, references, hypotheses))
    if head is not None:
        console.print(output_layer(head))
    console.print(times(work / "done"))
    console.print("[bold]commands[/bold], to be repeated by hand")
    if (work / "commands.sh").is_file():
        for line in read_lines(work / "commands.sh"):
            # No wrapping: a line copied from the terminal should run.
            console.print(escape(line), soft_wrap=True, highlight=False)
    console.print(scores(hypotheses, references))
    console.print(f"tensorboard --logdir {work / 'tensorboard'} shows how training went", highlight=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("quickstart"),
        help="folder of the quickstart (default: %(default)s)",
    )
    parser.add_argument("--src", default="en", help="source language (default: %(default)s)")
    parser.add_argument("--tgt", default="de", help="target language (default: %(default)s)")
    parser.add_argument("--user-dir", default="mhe_fairseq", help="path of the plugin (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        # A pipe has no width of its own: wide enough for the tables.
        console = Console() if sys.stdout.isatty() else Console(width=110)
        report(args.work, args.src, args.tgt, args.user_dir, console)
    except (ReportError, OSError) as error:
        print(f"report_quickstart.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
