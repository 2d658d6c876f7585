#!/usr/bin/env python3
"""Train a classifier of images of many classes, in plain PyTorch, with any of the package's output layers.

    python examples/classification/train.py --data glyphs --out runs/softmax
    python examples/classification/train.py --data glyphs --out runs/sampling --head sampling
    python examples/classification/train.py --data glyphs --out runs/faces --head sampling --margin arcface
    torchrun --nproc-per-node 8 examples/classification/train.py --data faces --out runs/faces \\
        --head sampling --margin arcface --shard

DATA has train, valid and test images, each a folder SPLIT/CLASS/*.png (as torchvision's ImageFolder) or an
archive SPLIT.npz of scripts/data/glyphs.py; valid and test may be missing. OUT gets log.jsonl with a line an
epoch; TensorBoard's events; checkpoint.pt after every epoch, from which the same command goes on where it was
interrupted; and result.json at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import checkpoints  # noqa: E402
import images  # noqa: E402
import layers  # noqa: E402
from network import Network, augmented, normalised  # noqa: E402
from ranks import Ranks  # noqa: E402

from mhe_fairseq.errors import MHEError  # noqa: E402
from mhe_fairseq.heads import SamplingHead  # noqa: E402
from mhe_fairseq.heads.sharded.state import names_of_parts  # noqa: E402
from scripts.common.progress import watched  # noqa: E402


class Training:
    """A model, its data, and how far it has come."""

    def __init__(self, args: argparse.Namespace, ranks: Ranks) -> None:
        self.args, self.ranks = args, ranks
        self.train = images.needed(args.data, "train", args.size)
        images.report_few(self.train, args.data / "train")
        self.splits = {
            name: images.with_classes_of(split, self.train, name)
            for name in ("valid", "test")
            if (split := images.open_split(args.data, name, args.size)) is not None
        }
        torch.manual_seed(args.seed)
        network = Network(self.train.channels, args.widths, args.depth, args.dim, args.norm)
        head = layers.build(args, args.dim, len(self.train.classes), self.train)
        self.model = checkpoints.Model(network, head, args.label_smoothing).to(ranks.device)
        self.steps = checkpoints.optimisers(self.model, args.lr, args.weight_decay)
        self.epoch, self.seconds, self.cpu = 0, 0.0, 0.0
        self.unreadable: set[str] = set()
        self.path = args.out / "checkpoint.pt"
        if self.path.exists():
            state = checkpoints.read(self.path)
            checkpoints.check_same(self.path, state, vars(args), self.train.classes)
            checkpoints.load(self.model, self.steps, state)
            self.epoch, self.seconds, self.cpu = (
                state["progress"][name] for name in ("epoch", "seconds", "cpu")
            )
        self.wrapped: Any = self.model
        if ranks.size > 1:
            ignored = names_of_parts(self.model)
            self.model._ddp_params_and_buffers_to_ignore = ignored  # type: ignore[assignment]
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.model, device_ids=ids)

    @property
    def updates(self) -> int:
        """In an epoch."""
        return len(self._order(0))

    def _order(self, epoch: int) -> list[list[int]]:
        """Batches of all processes. One at the end that is too small to normalise is left out."""
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(1000 * self.args.seed + epoch)
        ).tolist()
        found = [order[at : at + self.args.batch] for at in range(0, len(order), self.args.batch)]
        return [each for each in found if len(each) >= 2 * self.ranks.size] or found

    def run_epoch(self) -> float:
        """Mean loss of the epoch, on all processes the same."""
        args, ranks, head = self.args, self.ranks, self.model.head
        order, total = self._order(self.epoch), torch.zeros(2, device=ranks.device)
        if isinstance(head, SamplingHead):
            head.exact = self.epoch >= args.epochs - args.exact_epochs
        self.model.train()
        shares = [ranks.share(each) for each in order]
        read = images.batches(self.train, shares, args.workers)
        name = f"epoch {self.epoch + 1}/{args.epochs}"
        for number, batch in enumerate(watched(read, name, len(order)) if ranks.is_first else read):
            update = self.epoch * len(order) + number
            if len(batch.images) < 2 and args.norm == "batch":
                raise MHEError(
                    f"a process has {len(batch.images)} images that can be read of a batch, and --norm batch "
                    "needs two; use a larger --batch, or --norm group"
                )
            self.unreadable.update(batch.unreadable)
            generator = torch.Generator().manual_seed((update * ranks.size + ranks.rank) * 7919 + args.seed)
            pixels = augmented(normalised(batch.images.to(ranks.device)), args.augment, generator)
            head.set_num_updates(update)
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.bf16):
                losses = self.wrapped(pixels, batch.labels.to(ranks.device))
            # Processes' gradients are averaged, whatever the sizes of their parts.
            (losses.sum() * ranks.size / len(order[number])).backward()
            self._step(update)
            total += torch.stack([losses.detach().sum(), losses.new_tensor(len(losses))])
        total = ranks.total(total)
        return float(total[0] / total[1])

    def _step(self, update: int) -> None:
        lr = self.args.lr * rate(update, self.updates * self.args.epochs)
        if self.args.shard and self.ranks.size > 1:
            # The table's gradient is the sum over processes, that of all else their mean.
            self.model.head.sharded.weight.grad.div_(self.ranks.size)
        for each in self.steps.values():
            for group in each.param_groups:
                group["lr"] = lr
            each.step()
            each.zero_grad(set_to_none=True)

    @torch.no_grad()
    def accuracy(self, split: images.Split) -> tuple[float, float]:
        """Per cent right at 1 and at 5."""
        self.model.eval()
        ranks, most = self.ranks, min(5, len(self.train.classes))
        right = torch.zeros(3, device=ranks.device)
        shares = [ranks.share(each) for each in images.in_order(len(split), self.args.batch)]
        for batch in images.batches(split, shares, self.args.workers):
            self.unreadable.update(batch.unreadable)
            features = self.model.network(normalised(batch.images.to(ranks.device)))
            found = self.model.head.topk(features, most)[1] == batch.labels.to(ranks.device).unsqueeze(1)
            right += torch.stack([found[:, 0].sum(), found.sum(), torch.tensor(len(found)).to(right.device)])
        at_1, at_5, count = ranks.total(right).tolist()
        return 100 * at_1 / max(count, 1), 100 * at_5 / max(count, 1)

    def save(self) -> None:
        progress = {"epoch": self.epoch, "seconds": self.seconds, "cpu": self.cpu}
        checkpoints.save(
            self.path, self.model, self.steps, progress, plain(vars(self.args)), self.train.classes,
            self.ranks.is_first,
        )  # fmt: skip


def rate(update: int, updates: int) -> float:
    """Of the learning rate: up in the first twentieth, then down along a cosine."""
    warm = max(1, updates // 20)
    if update < warm:
        return (update + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (update - warm) / max(1, updates - warm)))


def plain(args: dict[str, Any]) -> dict[str, Any]:
    """As they are kept in files."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in args.items()}


class Log:
    """log.jsonl and TensorBoard's events; lines of epochs that are done again are left out."""

    def __init__(self, out: Path, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = out / "log.jsonl"
        self.lines = [each for each in read_log(self.path) if each["epoch"] <= epoch]
        self._board = SummaryWriter(str(out), purge_step=epoch + 1)

    def add(self, line: dict[str, float]) -> None:
        self.lines.append(line)
        text = "".join(json.dumps(each) + "\n" for each in self.lines)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self.path)
        for name, value in line.items():
            if name != "epoch":
                self._board.add_scalar(name, value, int(line["epoch"]))
        self._board.flush()


def read_log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(args: argparse.Namespace, ranks: Ranks) -> None:
    training = Training(args, ranks)
    head, log = training.model.head, None
    if ranks.is_first:
        args.out.mkdir(parents=True, exist_ok=True)
        log = Log(args.out, training.epoch)
        sizes = ", ".join(f"{name} {len(each):,}" for name, each in training.splits.items())
        print(f"{len(training.train):,} images of {head.vocab_size:,} classes; {sizes or 'nothing to test'}")
        print(
            f"network {count(training.model.network):,} parameters, {args.head} {count(head):,}", flush=True
        )
    while training.epoch < args.epochs:
        begin, cpu = time.perf_counter(), time.process_time()
        loss = training.run_epoch()
        training.epoch += 1
        training.seconds += time.perf_counter() - begin
        training.cpu += time.process_time() - cpu
        line = {"epoch": training.epoch, "seconds": training.seconds, "cpu_seconds": training.cpu}
        line["loss"] = loss
        if "valid" in training.splits:
            line["valid_1"], line["valid_5"] = training.accuracy(training.splits["valid"])
        ranks.wait()
        training.save()
        if log is not None:
            log.add(line)
            print("  ".join(f"{name} {value:.4g}" for name, value in line.items()), flush=True)
    result: dict[str, Any] = {"head": args.head, "margin": args.margin, "classes": head.vocab_size}
    result |= {"parameters": count(head), "seconds": training.seconds, "cpu_seconds": training.cpu}
    for name, split in training.splits.items():
        result[f"{name}_1"], result[f"{name}_5"] = training.accuracy(split)
    images.say("images that could not be read, left out", sorted(training.unreadable))
    if ranks.is_first:
        (args.out / "result.json").write_text(
            json.dumps({**result, "args": plain(vars(args))}, indent=1) + "\n"
        )
        print("  ".join(f"{name} {each:.4g}" for name, each in result.items() if isinstance(each, float)))


def count(module: torch.nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def widths(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of train, valid and test images")
    add("--out", type=Path, required=True, help="folder to write")
    layers.add_arguments(parser)
    add("--epochs", type=int, default=10, help="default: %(default)s")
    add(
        "--exact-epochs",
        type=int,
        default=0,
        help="the last epochs, in which --head sampling has the exact loss (default: %(default)s)",
    )
    add("--batch", type=int, default=256, help="images an update, of all processes (default: %(default)s)")
    add("--lr", type=float, default=0.002, help="default: %(default)s")
    add("--weight-decay", type=float, default=0.01, help="default: %(default)s")
    add("--label-smoothing", type=float, default=0.0, help="default: %(default)s")
    add("--size", type=int, default=112, help="side of a folder's images (default: %(default)s)")
    add("--augment", type=float, default=1.0, help="strength, 0: none (default: %(default)s)")
    add("--widths", type=widths, default=[16, 32, 64], help="of the stages (default: 16,32,64)")
    add("--depth", type=int, default=1, help="blocks a stage (default: %(default)s)")
    add("--dim", type=int, default=128, help="of the features (default: %(default)s)")
    add("--norm", choices=("batch", "group"), default="batch", help="default: %(default)s")
    add("--bf16", action="store_true", help="products in bf16")
    add("--workers", type=int, default=2, help="processes that read a folder's images (default: %(default)s)")
    add("--seed", type=int, default=1, help="default: %(default)s")
    add("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    ranks = None
    try:
        ranks = Ranks.start(args.device)
        run(args, ranks)
    except (MHEError, OSError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 1
    finally:
        if ranks is not None:
            ranks.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
