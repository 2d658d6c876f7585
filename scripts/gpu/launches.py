"""Part (b): launches, operators and host waits of a step; whether a batch's size compiles kernels anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from mhe_fairseq.heads.kernels.launch import Launch
from scripts.gpu.cases import KINDS, MAIN, Case, Shape
from scripts.gpu.counting import Operators, watching
from scripts.gpu.parts import Check, Outcome, Part, Seen, Settings
from scripts.gpu.record import kernel_name, signature_key

#: Batches of as many sizes.
_SIZES = 20

_SHAPE = Shape(32_768, 512, 4096)
_SMOKE = Shape(41, 16, 24)


def checks(settings: Settings) -> Sequence[Check]:
    shape = _SMOKE if settings.smoke else _SHAPE
    names = [name for name, kind in KINDS.items() if kind.kernels and (name in MAIN or not settings.smoke)]
    found = [Check(f"{name} step", partial(_step, name, shape, settings)) for name in names]
    sized = ("cascade", "product") if settings.smoke else names
    found += [Check(f"{name} sizes", partial(_sizes, name, shape, settings)) for name in sized]
    return found


def _step(name: str, shape: Shape, settings: Settings) -> Seen:
    """A step's launches and operators, and that the host does not wait for the device in it."""
    case = Case(name, shape, settings.device)
    for _ in range(2):  # tables that are made once, and compilation
        case.prepare()
        case.run()
    seen: list[Launch] = []
    operators = Operators()
    case.prepare()
    with watching(seen.append), operators:
        case.run()
    waits: list[str] = []
    if settings.device.type == "cuda":
        case.prepare()
        waits = _waits_on_cuda(case.run)
    else:
        waits = sorted(operators.waits)
    kernels = Counter(kernel_name(each.kernel) for each in seen)
    wrong = []
    if not seen:
        wrong.append("no kernel was launched")
    elif waits:
        wrong.append(f"the host waits: {', '.join(waits)}")
    return not wrong, {
        "wrong": "; ".join(wrong),
        "launches": len(seen),
        "operators": sum(operators.count.values()),
        "waits": waits,
        "kernels": dict(kernels),
        "by_operator": dict(operators.count.most_common()),
    }


def _sizes(name: str, shape: Shape, settings: Settings) -> Seen:
    """Batches of twenty sizes are served by the kernels of the first."""
    case = Case(name, shape, settings.device)
    compiled: set[Any] = set()
    by_size: list[int] = []
    late: set[str] = set()

    def watcher(seen: Launch) -> None:
        key = signature_key(seen)
        if key not in compiled:
            compiled.add(key)
            if by_size:
                late.add(kernel_name(seen.kernel))

    for number in range(2 if settings.smoke else _SIZES):
        case.batch(shape.tokens - 13 * number if number else shape.tokens)
        case.prepare()
        with watching(watcher):
            case.run()
        by_size.append(len(compiled))
    wrong = f"another size compiles {', '.join(sorted(late))} again" if late else ""
    if not compiled:
        wrong = "no kernel was launched"
    return not wrong, {"wrong": wrong, "compiled": by_size}


def _waits_on_cuda(run: Callable[[], None]) -> list[str]:
    """The first operator that waits, by what torch says of it."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        trace = error.__traceback__
        frames = []
        while trace is not None:
            frames.append(f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}")
            trace = trace.tb_next
        return [frames[-1]]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return []


def show(outcome: Outcome) -> None:
    rows = []
    for name in KINDS:
        step, sizes = outcome.named(f"{name} step"), outcome.named(f"{name} sizes")
        if step is None or "launches" not in step:
            continue
        compiled = "-" if sizes is None or not sizes.get("compiled") else _range(sizes["compiled"])
        waits = ", ".join(step["waits"]) or "none"
        rows.append([name, str(step["launches"]), str(step["operators"]), waits, compiled])
    header = ["head", "launches", "operators", "host waits", "kernels compiled, first size and all"]
    outcome.tables.append(("A training step", header, rows))


def _range(counts: list[int]) -> str:
    return f"{counts[0]}, {counts[-1]}"


PART = Part("b", "launches, operators and host waits", 25, checks, show)
