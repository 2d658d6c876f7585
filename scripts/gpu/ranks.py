"""Part (f): one rank of a distributed training, by each backend: NCCL, DDP and fully sharded parameters."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from functools import partial

from scripts.gpu import train_flags
from scripts.gpu.fairseq_logs import apart, trained, unlike
from scripts.gpu.made_data import made
from scripts.gpu.parts import Check, Outcome, Part, Seen, Settings
from scripts.gpu.workshop import NotHere, Ran

#: How far losses (base 2, a token) and norms of gradients (as a share) may be apart. A log has three digits;
#: in half precision gradients are summed in other types and orders.
TOLERANCES = {"fp32": (2e-3, 2e-3), "fp16": (0.02, 0.02)}

#: What a backend wraps a model in.
_WRAPPERS = {
    "pytorch_ddp": "DistributedDataParallel",
    "legacy_ddp": "LegacyDistributedDataParallel",
    "fully_sharded": "FullyShardedDataParallel",
}


def checks(settings: Settings) -> Sequence[Check]:
    """What people train with first: half precision, whose kernels are compiled already."""
    settings.workshop.open(settings.device.type == "cuda")
    found = []
    for precision in ("fp32",) if settings.smoke else ("fp16", "fp32"):
        pairs = [("cascade-tied", backend) for backend in _WRAPPERS]
        pairs += [
            (head, "pytorch_ddp") for head in (("product",) if settings.smoke else ("product", "sampling"))
        ]
        found += [
            Check(f"{head}, {backend}, {precision}", partial(_rank, head, backend, precision, settings))
            for head, backend in pairs
        ]
    return found


def _rank(head: str, backend: str, precision: str, settings: Settings) -> Seen:
    """That its losses and gradients are those of a training without a process group."""
    if backend == "fully_sharded":
        if importlib.util.find_spec("fairscale") is None:
            raise NotHere("fairscale is not installed: pip install fairscale==0.4.13")
        if settings.device.type == "cpu":
            raise NotHere("fairscale's fully_sharded needs a GPU")
    flags = _flags(head, precision, settings)
    alone = settings.workshop.once(tuple(flags), lambda: settings.workshop.run("fairseq_cli.train", flags))
    flags = [*flags, "--ddp-backend", backend]
    ranked = settings.workshop.run("scripts.gpu.one_rank", flags)
    seen = {"head": head, "backend": backend, "precision": precision, "flags": flags}
    if alone.status or ranked.status:
        return False, seen | {"wrong": ranked.trouble or f"without a group: {alone.trouble}"}
    ours, theirs = trained(ranked.said, 0), trained(alone.said, 0)
    wrapper, group = _wrapper(ranked)
    wrong = unlike(ours, theirs, *TOLERANCES[precision])
    if not wrong and wrapper != _WRAPPERS[backend]:
        wrong = f"the model was wrapped by {wrapper}"
    loss, norm = apart(ours, theirs) if len(ours.losses) == len(theirs.losses) else (None, None)
    return not wrong, seen | {
        "wrong": wrong,
        "group": group,
        "losses": ours.losses,
        "losses_alone": theirs.losses,
        "losses_apart": loss,
        "norms_apart": norm,
    }


def _flags(head: str, precision: str, settings: Settings) -> list[str]:
    """A short training at the smaller V, without dropout, that moves the weights."""
    vocab = train_flags.vocabs(settings)[0]
    data = made(train_flags.text(vocab, settings), settings)
    return [
        *train_flags.line(head, data, settings), *train_flags.place(settings, precision), "--dropout", "0",
        "--lr-scheduler", "fixed", "--warmup-updates", "0", "--lr", "0.001", "--no-save",
        "--log-interval", "1", "--max-update", "2" if settings.smoke else "6",
    ]  # fmt: skip


def _wrapper(ran: Ran) -> tuple[str, str]:
    """What the model was wrapped in, and the process group's backend."""
    found = re.search(r"one rank, wrapped by (\w+) over (\w+)", ran.said)
    return (found[1], found[2]) if found else ("nothing", "none")


def show(outcome: Outcome) -> None:
    rows = [
        [check["head"], check["backend"], check["group"], check["precision"],
         f"{check['losses_apart']:.3f}", f"{check['norms_apart']:.3f}", check["wrong"] or "equal"]
        for check in outcome.checks
        if check.get("losses_apart") is not None
    ]  # fmt: skip
    if rows:
        header = ["head", "backend", "group", "type", "losses apart", "gradients apart", "seen"]
        outcome.tables.append(("One rank against none", header, rows))


PART = Part("f", "one rank of many", 60, checks, show)
