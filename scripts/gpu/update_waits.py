#!/usr/bin/env python3
"""Where the host waits for the device in an update of fairseq-train, with any model and flags.

    python scripts/gpu/update_waits.py --json waits.json -- DATA-BIN --user-dir mhe_fairseq --arch ...

runs fairseq-train with the arguments after ``--``, and ends it after the updates that it watches. It
records each operator that makes the host wait: what it is, the line of fairseq or of the plugin that called
it, how often in an update, and on a GPU how long the host spent in it. On a CPU (``--cpu``) the same
operators run, but do not wait. There it follows which tensors would be on a GPU, beginning with the model,
the optimiser and the batches.
"""

from __future__ import annotations

import argparse
import importlib
import json
import linecache
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.gpu.device_numbers import DeviceNumbers
from scripts.gpu.waits import waiting

#: Methods that bring numbers to the host and are no operators where they are there already.
_TO_HOST = {Tensor.tolist: "tolist", Tensor.cpu: "cpu", Tensor.numpy: "numpy"}

#: Whose lines are told: packages, the innermost of which asked for the operator.
_PACKAGES = ("fairseq", "fairseq_cli", "mhe_fairseq")


#: Where numbers are looked at on a CPU alone: nothing there is on a GPU.
_OF_CPU = "mhe_fairseq/heads/given.py:"


@dataclass(frozen=True)
class Wait:
    """A place where the host waits.

    Attributes:
        operator: as torch calls it.
        place: package/file.py:line.
        source: that line.
        times: in an update, mean.
        host_ms: in an update, mean; what the host was in it for. Of a GPU only.
    """

    operator: str
    place: str
    source: str
    times: float
    host_ms: float


class Watch:
    """Notes what waits, once ``noting`` is set."""

    def __init__(self) -> None:
        self.noting = False
        self._device = DeviceNumbers()
        self._times: dict[tuple[str, str, str], int] = defaultdict(int)
        self._seconds: dict[tuple[str, str, str], float] = defaultdict(float)
        self._modes: ExitStack | None = None

    def begin(self, trainer: Any) -> None:
        """Follow what becomes of the trainer's model and of its optimiser's state."""
        for module in (trainer.model, trainer.criterion):
            self._device.add([*module.parameters(), *module.buffers()])
        if trainer.optimizer is not None:
            self._device.add([*trainer.optimizer.params, *trainer.optimizer.optimizer.state.values()])
        self._modes = ExitStack()
        self._modes.enter_context(_Functions(self))
        self._modes.enter_context(_Operators(self))

    def end(self) -> None:
        if self._modes is not None:
            self._modes.close()
            self._modes = None

    def batch(self, sample: Any) -> None:
        """A batch that has come to the device."""
        self._device.add(sample)

    def run(self, operator: str | None, call: Callable[[], Any], given: Any, to_host: bool = False) -> Any:
        """Run an operator, and note it where it waits; its name is None where it never does.

        Args:
            operator: its name.
            call: runs it.
            given: its arguments.
            to_host: what it gives is on the host.
        """
        waits = operator is not None and self._device.has(given)
        begun = time.perf_counter()
        result = call()
        if waits and self.noting and not (place := _place(sys._getframe(2)))[0].startswith(_OF_CPU):
            key = (str(operator), *place)
            self._times[key] += 1
            self._seconds[key] += time.perf_counter() - begun
        if to_host:
            self._device.remove(result)
        elif operator is None or waits:
            self._device.follow(given, result)
        return result

    def waits(self, updates: int) -> list[Wait]:
        """What was noted in so many updates, the most frequent first."""
        found = [
            Wait(*key, times / updates, 1000 * self._seconds[key] / updates)
            for key, times in self._times.items()
        ]
        return sorted(found, key=lambda wait: (-wait.times, wait.place, wait.operator))


class _Operators(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = waiting(func, args) or _copied(func, args, kwargs)
        # A shape is the host's.
        to_host = func is torch.ops.aten._shape_as_tensor.default
        return self.watch.run(name, lambda: func(*args, **kwargs), (args, kwargs), to_host)


class _Functions(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # On a GPU the copy to the host is an operator, and is noted as that.
        if func not in _TO_HOST or args[0].is_cuda:
            return func(*args, **kwargs)
        return self.watch.run(_TO_HOST[func], lambda: func(*args, **kwargs), args, to_host=True)


def _copied(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """A copy between host and GPU that the host waits for: not ``non_blocking``, or by pageable memory."""
    name = func._schema.name.removeprefix("aten::")
    if name == "_to_copy":
        source, target = args[0].device.type, torch.device(kwargs.get("device") or args[0].device).type
        eager = kwargs.get("non_blocking", False)
        pinned = source == "cpu" and args[0].is_pinned()
    elif name == "copy_":
        source, target = args[1].device.type, args[0].device.type
        eager = bool(args[2]) if len(args) > 2 else kwargs.get("non_blocking", False)
        pinned = (args[1] if source == "cpu" else args[0]).is_pinned()
    else:
        return None
    if source == target or (eager and pinned):
        return None
    return f"copy {source} to {target}"


def _place(frame: FrameType | None) -> tuple[str, str]:
    """The innermost line of the packages, and its text; what the backward pass runs in its own thread has
    none."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        for package in _PACKAGES:
            if package in path.parts[:-1]:
                begin = len(path.parts) - 1 - path.parts[::-1].index(package)
                line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
                return f"{'/'.join(path.parts[begin:])}:{frame.f_lineno}", line
        frame = frame.f_back
    return "elsewhere", ""


class _Done(Exception):
    """Enough updates were seen."""


def watched(arguments: Sequence[str], warm_up: int, updates: int) -> list[Wait]:
    """Train and watch.

    Args:
        arguments: of fairseq-train.
        warm_up: updates before.
        updates: to be watched.

    Returns:
        The waits of an update, or none where the training ended before them.
    """
    from fairseq.trainer import Trainer

    train = importlib.import_module("fairseq_cli.train")
    watch, step, prepare, seen = Watch(), Trainer.train_step, Trainer._prepare_sample, 0

    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if seen == 0:
            watch.begin(self)
        watch.noting = seen >= warm_up
        if seen == warm_up + updates:
            raise _Done
        seen += 1
        return step(self, *args, **kwargs)

    def _prepare_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(self, *args, **kwargs)
        watch.batch(prepared[0])
        return prepared

    Trainer.train_step, Trainer._prepare_sample = train_step, _prepare_sample
    before, sys.argv = sys.argv, ["fairseq-train", *arguments]
    try:
        train.cli_main()
    except _Done:
        return watch.waits(updates)
    finally:
        watch.end()
        Trainer.train_step, Trainer._prepare_sample, sys.argv = step, prepare, before
    return []


def table(waits: Sequence[Wait], times: bool) -> str:
    """As markdown; with host times where they say something."""
    header = ["operator", "where", "times an update", *(["host ms"] if times else []), "line"]
    rows = [
        [f"`{each.operator}`", each.place, f"{each.times:g}"]
        + ([f"{each.host_ms:.2f}"] if times else [])
        + [f"`{each.source}`" if each.source else ""]
        for each in waits
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], usage="%(prog)s [options] -- DATA-BIN FLAG..."
    )
    parser.add_argument(
        "--warm-up", type=int, default=4, metavar="N", help="updates before those that are watched (4)"
    )
    parser.add_argument("--updates", type=int, default=4, metavar="N", help="updates to watch (4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.add_argument("train", nargs="+", metavar="FLAG", help="arguments of fairseq-train")
    given = parser.parse_args()
    if given.updates < 1 or given.warm_up < 0:
        parser.error(f"--updates is at least 1 and --warm-up 0, got {given.updates} and {given.warm_up}")
    waits = watched(given.train, given.warm_up, given.updates)
    if not waits:
        parser.error(
            f"the training ended before update {given.warm_up + given.updates + 1}: give it more updates"
        )
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in waits], indent=1) + "\n")
    print(table(waits, torch.cuda.is_available() and "--cpu" not in given.train))
    print(f"\n{sum(each.times for each in waits):g} an update")


if __name__ == "__main__":
    main()
