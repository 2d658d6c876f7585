"""What `mhe plan` expects of a GPU: calculated from passes, launches, and what is assumed of the machine."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mhe_fairseq.cli.plan_heads import MIXTURES, HeadPlan, smoothing_groups
from mhe_fairseq.cli.plan_passes import Pass, Sizes, bytes_moved, peak_bytes, search_passes, training_passes
from mhe_fairseq.coding import plan_lengths
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.kernels.step_counts import search_launches, training_launches

_HALF, _FP32 = 2, 4

#: Share of the bandwidth and of the arithmetic that passes are taken to reach.
REACHED = 0.7

#: Vocabularies looked at for the one from which a head is faster.
_SMALLEST, _LARGEST = 256, 2**24

#: GB/s of memory, TFLOP/s of dense products in half precision: of the vendor's data sheets.
GPUS = {
    "a10": (600.0, 125.0),
    "a100": (2039.0, 312.0),
    "l4": (300.0, 121.0),
    "h100": (3350.0, 989.0),
    "h200": (4800.0, 989.0),
}


@dataclass(frozen=True)
class Machine:
    """What is assumed.

    Attributes:
        name: one of ``GPUS``, or "custom" where a rate was given.
        bandwidth: GB/s to and from the GPU's memory, at best.
        tflops: TFLOP/s of dense products in half precision, at best.
        launch_us: microseconds that the host takes to start an operator or kernel.
        reached: share of both rates that passes reach.
    """

    name: str
    bandwidth: float
    tflops: float
    launch_us: float
    reached: float = REACHED

    def device_ms(self, passes: Iterable[Pass]) -> float:
        """A pass takes as long as its bytes or its products, whichever is longer; one follows another."""
        moved, multiplied = self.bandwidth * self.reached * 1e6, self.tflops * self.reached * 1e9
        return sum(max((each.read + each.written) / moved, 2 * each.macs / multiplied) for each in passes)

    def host_ms(self, launches: int) -> float:
        return launches * self.launch_us / 1000


@dataclass(frozen=True)
class GpuCost:
    """Of one head, calculated. Bytes are of a whole step of the output layer; times in half precision: the
    host's or the device's, whichever is longer.

    Attributes:
        train_bytes_half, train_bytes_fp32: moved to and from memory in a training step.
        peak_half, peak_fp32: held at its peak beside weights, features and the weights' gradients.
        train_launches: operators and kernels of it.
        train_ms: how long it takes.
        search_bytes_half, search_bytes_fp32, search_launches, search_ms: the same of a step of beam search.
    """

    train_bytes_half: int
    train_bytes_fp32: int
    peak_half: int
    peak_fp32: int
    train_launches: int
    train_ms: float
    search_bytes_half: int
    search_bytes_fp32: int
    search_launches: int
    search_ms: float


@dataclass(frozen=True)
class GpuPlan:
    """What a GPU is expected to do with the heads of a plan.

    Attributes:
        machine: what is assumed.
        hypotheses: of a step of beam search.
        costs: by the name of a head.
        recommended: the head to take.
        reason: why.
        faster_in_training, faster_in_search: the smallest V for which a cascade's step takes less than the
            softmax's, with planned lengths and this batch; None: none up to 16.8 million.
    """

    machine: Machine
    hypotheses: int
    costs: dict[str, GpuCost]
    recommended: str
    reason: str
    faster_in_training: int | None
    faster_in_search: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; costs go with their heads."""
        return {name: value for name, value in asdict(self).items() if name != "costs"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is assumed."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="give advice for this device only (default: for both)"
    )
    parser.add_argument(
        "--gpu", metavar="NAME", default="h100", help=f"the GPU: {', '.join(GPUS)} (default h100)"
    )
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="memory bandwidth of another GPU")
    parser.add_argument(
        "--tflops", type=float, metavar="T", help="dense half-precision TFLOP/s of another GPU"
    )
    parser.add_argument(
        "--launch-us", type=float, default=10.0, metavar="US",
        help="microseconds that the host takes to start an operator or kernel (default 10)",
    )  # fmt: skip
    parser.add_argument(
        "--sentences", type=int, default=64, metavar="N", help="sentences translated at once (default 64)"
    )


def machine_of(args: argparse.Namespace) -> Machine:
    """What the flags say.

    Raises:
        MHEError: no such GPU, or a number that is not above 0.
    """
    if args.gpu not in GPUS:
        raise MHEError(
            f"--gpu {args.gpu} is none of {', '.join(GPUS)}; for another give --bandwidth and --tflops"
        )
    for name in ("bandwidth", "tflops", "launch_us"):
        value = getattr(args, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            finite = " and finite" if value > 0 else ""
            raise MHEError(f"--{name.replace('_', '-')} must be above 0{finite}, got {value:g}")
    bandwidth, tflops = GPUS[args.gpu]
    if args.bandwidth is None and args.tflops is None:
        return Machine(args.gpu, bandwidth, tflops, args.launch_us)
    return Machine("custom", args.bandwidth or bandwidth, args.tflops or tflops, args.launch_us)


def plan_gpu(
    heads: list[HeadPlan], vocab: int, machine: Machine, dim: int, tokens: int, sentences: int, beam: int,
    choice: str, prototypes: int = 1,
) -> GpuPlan:  # fmt: skip
    """Costs and advice.

    Args:
        heads: from ``plan_heads``.
        vocab: V.
        machine: see there.
        dim: d.
        tokens: N, in a training batch.
        sentences: translated at once.
        beam: hypotheses of a sentence; the 2 x beam best tokens of each are found.
        choice: the head that is recommended where multiply-adds are what counts.
        prototypes: m, rows of a cascade's groups.
    """
    hypotheses = sentences * beam
    base = Sizes(vocab, dim, (), tokens, hypotheses, min(2 * beam, vocab), prototypes=prototypes)
    costs = {}
    for head in heads:
        sizes = replace(
            base,
            lengths=head.lengths,
            mixtures=MIXTURES if head.kind == "mixture" else 1,
            groups=head.groups or 0,
            touched=head.touched_groups or 0.0,
            drawn=head.drawn or 0,
        )
        costs[head.head] = cost_of(head.kind, sizes, machine)
    digits = len(next(head.lengths for head in heads if head.kind == "cascade"))
    training, search = (_faster_from(base, machine, digits, step) for step in ("train_ms", "search_ms"))
    recommended, reason = _advise(costs, machine, tokens, hypotheses, choice, (training, search))
    return GpuPlan(machine, hypotheses, costs, recommended, reason, training, search)


def cost_of(kind: str, sizes: Sizes, machine: Machine) -> GpuCost:
    """Of a head of this kind."""
    training = {e: training_passes(kind, sizes, e) for e in (_HALF, _FP32)}
    search = {e: search_passes(kind, sizes, e) for e in (_HALF, _FP32)}
    digits = len(sizes.lengths)
    launches = training_launches(kind, digits), search_launches(kind, digits, sizes.prototypes)
    return GpuCost(
        round(bytes_moved(training[_HALF])),
        round(bytes_moved(training[_FP32])),
        round(peak_bytes(kind, sizes, _HALF)),
        round(peak_bytes(kind, sizes, _FP32)),
        launches[0],
        max(machine.host_ms(launches[0]), machine.device_ms(training[_HALF])),
        round(bytes_moved(search[_HALF])),
        round(bytes_moved(search[_FP32])),
        launches[1],
        max(machine.host_ms(launches[1]), machine.device_ms(search[_HALF])),
    )


def _faster_from(base: Sizes, machine: Machine, digits: int, step: str) -> int | None:
    """The smallest V from which on a cascade's step is the faster one, to some percent."""
    found = None
    vocab = float(_LARGEST)
    while vocab >= _SMALLEST:
        v = round(vocab)
        lengths = plan_lengths(v, digits)
        groups = math.ceil(v / lengths[-1])
        softmax = replace(base, vocab=v)
        # A batch of a large text touches every group, near enough, or few: all is the slower.
        cascade = replace(
            softmax, lengths=lengths, groups=groups, touched=float(groups), drawn=smoothing_groups(groups)
        )
        if getattr(cost_of("cascade", cascade, machine), step) >= getattr(
            cost_of("softmax", softmax, machine), step
        ):
            return found
        found = v
        vocab /= 2**0.0625
    return found


def _advise(
    costs: dict[str, GpuCost], machine: Machine, tokens: int, hypotheses: int, choice: str,
    faster: tuple[int | None, int | None],
) -> tuple[str, str]:  # fmt: skip
    """The head to take on a GPU, and why."""
    softmax, cascade = costs["softmax"], costs["cascade"]
    saved = softmax.train_ms - cascade.train_ms
    memory = f"{_size(cascade.peak_half)} in place of {_size(softmax.peak_half)}"
    steps = (
        f"Calculated for {tokens:,} tokens a batch: a training step of the output layer takes "
        f"{_ms(cascade.train_ms)} with a cascade ({_bound(cascade, machine)}), {_ms(softmax.train_ms)} with "
        f"the softmax; a search step of {hypotheses:,} hypotheses {_ms(cascade.search_ms)} and "
        f"{_ms(softmax.search_ms)}. "
    )
    below = (
        f"Expect no gain in speed in training {_below(faster[0])}, nor in search {_below(faster[1])}; "
        "smaller batches move these up. "
    )
    if saved <= 0:
        kept = f"Memory is what a cascade saves: {memory}."
        return "softmax", steps + below + kept
    share = (
        f"At most {_ms(saved)} of an update are saved, whatever the rest of the model takes; and memory, "
        f"{memory}."
    )
    return choice, steps + below + share


def _bound(cost: GpuCost, machine: Machine) -> str:
    host = machine.host_ms(cost.train_launches)
    return f"its {cost.train_launches} launches" if cost.train_ms <= host else "the device's work"


def _below(vocab: int | None) -> str:
    if vocab is None:
        return f"at any V up to {_LARGEST / 1e6:.1f} million"
    if vocab < 2 * _SMALLEST:
        return "below a V of some hundreds"
    return f"below a V of about {_two_digits(vocab):,}"


def _two_digits(number: int) -> int:
    scale = 10 ** max(0, len(str(number)) - 2)
    return round(number / scale) * scale


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value >= 1 else f"{value:.2g} ms"


def _size(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB"
