#!/usr/bin/env python3
"""Measure the time of a training update and the peak memory of its process, for several models in turns.

    python scripts/study/time_updates.py compare/softmax-1/checkpoints/checkpoint_last.pt \
        compare/cascade-1/checkpoints/checkpoint_last.pt

Each checkpoint is loaded in a process of its own and makes updates on the same batches of its own training
set, with fairseq's trainer, as ``fairseq-train`` does. The processes take turns, a few updates each, so that
other work of the machine slows all of them alike. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import sys
import time
import warnings
from argparse import Namespace
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

#: Where this repository has its plugin, from whatever folder the script is run.
USER_DIR = str(Path(sys.path[0]) / "mhe_fairseq")

#: Updates before the clock starts: they allocate the optimiser's state.
WARM_UP = 2


@dataclass(frozen=True)
class Measured:
    """What was seen of one model.

    Attributes:
        checkpoint: where it was loaded from.
        parameters: of the whole model, shared ones counted once.
        output_parameters: of them, those that only the output layer has.
        seconds: of each timed update.
        peak_bytes: the largest memory that the process had, torch and data included.
    """

    checkpoint: str
    parameters: int
    output_parameters: int
    seconds: list[float]
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class TimingError(Exception):
    """Bad input, said in one sentence."""


def measure(
    checkpoints: list[Path],
    rounds: int = 6,
    updates: int = 5,
    threads: int = 0,
    user_dir: str = USER_DIR,
    data: str | None = None,
) -> list[Measured]:
    """Measure each checkpoint's model.

    Args:
        checkpoints: of ``fairseq-train``.
        rounds: how often each has its turn.
        updates: in one turn.
        threads: of each process; 0: torch's own choice.
        user_dir: the plugin of their models.
        data: folder to train on in place of the one that each was trained on.

    Raises:
        TimingError: a checkpoint that is missing or cannot be trained on.
    """
    for checkpoint in checkpoints:
        if not checkpoint.is_file():
            raise TimingError(f"there is no {checkpoint}")
    context = multiprocessing.get_context("spawn")
    lines: list[Connection] = []
    processes = []
    try:
        for checkpoint in checkpoints:
            ours, theirs = context.Pipe()
            arguments = (theirs, str(checkpoint), rounds * updates, threads, user_dir, data)
            processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
            lines.append(ours)
            # One after the other, also here: loading is work for all cores.
            _ask(ours, checkpoint, WARM_UP)
        for _ in range(rounds):
            for line, checkpoint in zip(lines, checkpoints, strict=True):
                _ask(line, checkpoint, updates)
        return [_ask(line, path, 0) for line, path in zip(lines, checkpoints, strict=True)]
    finally:
        for line in lines:
            line.close()
        for process in processes:
            process.join(timeout=30)


def _ask(line: Connection, checkpoint: Path, updates: int) -> Any:
    try:
        line.send(updates)
        answer = line.recv()
    except (EOFError, BrokenPipeError):
        raise TimingError(f"the process of {checkpoint} ended early; its message is above") from None
    if isinstance(answer, str):
        raise TimingError(f"{checkpoint}: {answer}")
    return answer


def _serve(
    line: Connection, checkpoint: str, timed: int, threads: int, user_dir: str, data: str | None
) -> None:
    """Make as many updates as are asked for; asked for none, tell what was measured and end."""
    try:
        trainer, batches = _load(checkpoint, threads, user_dir, data, count=8)
    except Exception as error:  # whatever is wrong with it, the one who asked should hear of it
        line.recv()
        line.send(f"cannot be trained on ({type(error).__name__}: {error})")
        return
    seconds: list[float] = []
    done = 0
    while updates := line.recv():
        for _ in range(updates):
            start = time.perf_counter()
            trainer.train_step([batches[done % len(batches)]])
            seconds.append(time.perf_counter() - start)
            done += 1
        line.send(done)
    model = trainer.get_model()
    parameters = sum(p.numel() for p in model.parameters())
    line.send(Measured(checkpoint, parameters, _output_parameters(model), seconds[-timed:], peak_memory()))


def _output_parameters(model: Any) -> int:
    decoder = model.decoder
    if hasattr(decoder, "head"):
        return int(decoder.head.output_parameters())
    if getattr(decoder, "adaptive_softmax", None) is not None:
        return sum(parameter.numel() for parameter in decoder.adaptive_softmax.parameters())
    own = decoder.output_projection.weight
    return 0 if own is decoder.embed_tokens.weight else own.numel()


def _load(
    checkpoint: str, threads: int, user_dir: str, data: str | None, count: int
) -> tuple[Any, list[Any]]:
    """fairseq's trainer as ``fairseq-train`` makes it, with the checkpoint's weights; and batches, evenly
    from the shortest sentences to the longest, in an order that is the same for each model."""
    # fairseq uses what torch warns about.
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)  # before the imports: fairseq tells about optional packages in them
    import torch
    from fairseq import utils
    from fairseq.trainer import Trainer

    if threads:
        torch.set_num_threads(threads)
    utils.import_user_module(Namespace(user_dir=user_dir or None))
    # After the plugin, which fairseq refuses once it is imported.
    from mhe_fairseq.cli.checkpoint import read_with_data, set_up_task

    state = read_with_data(Path(checkpoint), data)
    cfg = state["cfg"]
    cfg.dataset.num_workers = 0
    utils.set_torch_seed(cfg.common.seed)
    task = set_up_task(state, Path(checkpoint))
    model = task.build_model(cfg.model)
    model.load_state_dict(state["model"], strict=True)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    # It reads the training set, which a task of many languages does not do twice.
    iterator = trainer.get_train_iterator(epoch=1).next_epoch_itr(shuffle=False)
    everything = list(iterator)
    step = max(1, len(everything) // count)
    batches = everything[::step][:count]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(1)).tolist()
    trainer.begin_epoch(1)
    return trainer, [batches[i] for i in order]


def peak_memory() -> int:
    """Bytes that this process had in memory at most."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: its figure begins with that of the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def machine(threads: int) -> str:
    """What the times were taken on."""
    # Late: torch takes seconds to import, and bad input should be told at once.
    import torch

    from mhe_fairseq.bench.machine import Machine

    if threads:
        torch.set_num_threads(threads)
    return str(Machine.here(torch.device("cpu")))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each model (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=5, help="updates a turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: torch's own choice)")
    parser.add_argument(
        "--user-dir", default=USER_DIR, help="path of the plugin (default: this repository's mhe_fairseq)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="data to train on (default: that of each checkpoint's training)"
    )
    args = parser.parse_args(argv)
    try:
        for name in ("rounds", "updates"):
            if getattr(args, name) < 1:
                raise TimingError(f"--{name} must be at least 1, got {getattr(args, name)}")
        measured = measure(
            args.checkpoints, args.rounds, args.updates, args.threads, args.user_dir, args.data
        )
        where = machine(args.threads)
        for each in measured:
            print(json.dumps(asdict(each) | {"median": each.median, "machine": where}))
    except TimingError as error:
        print(f"time_updates.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
