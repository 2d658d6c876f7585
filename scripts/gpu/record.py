"""Which kernels the heads launch, with which arguments: recorded on the CPU, where nothing is launched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mhe_fairseq.heads.kernels import dispatch, launch
from mhe_fairseq.heads.kernels.launch import Launch, Tile
from scripts.gpu.cases import KINDS, Case, Shape
from scripts.gpu.idle import Idle

#: Tokens of a vocabulary whose first step alone is recorded.
_MANY = 300_000

#: Constants up to this one say what a kernel does; larger ones are sizes.
_FEW = 3


@dataclass(frozen=True)
class Signature:
    """A kernel as it would be compiled.

    Attributes:
        kernel: the jitted function.
        arguments: what it is called with: numbers, None, and small tensors in place of the real ones.
        constants: name -> value, those of the tile among them.
        tile: constants of the tile, warps and stages.
        head: that launched it first.
        dtype: of that head, by its name.
        where: what it was doing.
        key: see ``signature_key``.
    """

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    tile: Tile
    head: str
    dtype: str
    where: str
    key: tuple[Any, ...]

    @property
    def name(self) -> str:
        return kernel_name(self.kernel)

    @property
    def likeness(self) -> tuple[Any, ...]:
        """What it shares with others that differ in sizes alone: types, tile, and constants that are few,
        which say what is computed."""
        name, kinds, _, warps, stages = self.key
        few = tuple(
            (name, repr(value))
            for name, value in sorted(self.constants.items())
            if name in self.tile.constants or not isinstance(value, int) or value <= _FEW
        )
        return name, kinds, few, warps, stages

    @property
    def parts(self) -> tuple[str, ...]:
        """Constants that turn something on."""
        return tuple(sorted(name for name, value in self.constants.items() if value is True))

    @property
    def settings(self) -> str:
        """The tile, in words."""
        sizes = " ".join(f"{name} {size}" for name, size in self.tile.constants.items())
        return f"{sizes + ', ' if sizes else ''}{self.tile.warps} warps, {self.tile.stages} stages"


def kernel_name(kernel: Any) -> str:
    """Its module's name and its own: modules have kernels of the same name."""
    function = getattr(kernel, "fn", kernel)
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__.removesuffix('_kernel')}"


def signature_key(launch: Launch) -> tuple[Any, ...]:
    """Launches of the same key are served by one compiled kernel."""
    kernel = launch.kernel
    parameters = getattr(kernel, "params", None)
    kinds = []
    for number, argument in enumerate(launch.arguments):
        parameter = parameters[number] if parameters is not None else None
        kinds.append(_kind(argument, bool(getattr(parameter, "do_not_specialize", False))))
    constants = tuple(sorted((name, repr(value)) for name, value in launch.constants.items()))
    return kernel_name(kernel), tuple(kinds), constants, launch.tile.warps, launch.tile.stages


def _kind(argument: Any, plain: bool) -> Any:
    """As Triton's launcher tells arguments apart."""
    if isinstance(argument, Tensor):
        return str(argument.dtype), _address(argument) % 16 == 0
    if isinstance(argument, bool) or not isinstance(argument, int):
        return argument if argument is None else type(argument).__name__
    width = "i32" if -(2**31) <= argument < 2**31 else "i64"
    if plain:
        return width
    return (width, 1) if argument == 1 else (width, argument % 16 == 0)


def _address(tensor: Tensor) -> int:
    """Where its data begins, as far as that says how it is aligned: allocators align to 64 bytes and more."""
    return int(tensor.storage_offset()) * tensor.element_size()


def _small(argument: Any) -> Any:
    """A tensor as Triton's launcher sees it, of few numbers; other arguments as they are."""
    if not isinstance(argument, Tensor):
        return argument
    small = torch.empty(64, dtype=argument.dtype)
    return small if _address(argument) % 16 == 0 else small[1:]


class Recorder:
    """Collects the distinct launches of what runs within ``recording``."""

    def __init__(self) -> None:
        self.found: dict[tuple[Any, ...], Signature] = {}

    def record(self, run: Callable[[], object], head: str, dtype: str, where: str) -> int:
        """Run something and keep its launches; none is done. Returns how many there were."""
        count = 0

        def watcher(seen: Launch) -> bool:
            nonlocal count
            count += 1
            key = signature_key(seen)
            if key not in self.found:
                arguments = tuple(map(_small, seen.arguments))
                self.found[key] = Signature(
                    seen.kernel, arguments, dict(seen.constants), seen.tile, head, dtype, where, key
                )
            return False

        with dispatch.pretend(), launch.watched(watcher), Idle():
            run()
        return count

    def case(self, name: str, shape: Shape, steps: Iterable[str] = ("smoothing",)) -> int:
        """The launches of a head's ``steps``: of a training step with "smoothing" or without it ("plain"),
        or of "scoring", which wants no gradient; or of a step of beam search ("search")."""
        count = 0
        case = Case(name, shape, torch.device("cpu"), fill=False)
        for step in steps:
            where = f"V = {shape.vocab:,}, d = {shape.dim:,}, N = {shape.tokens:,}, {step}"
            count += self.record(partial(_step, case, step), name, shape.dtype, where)
        return count


def _step(case: Case, step: str) -> None:
    if step == "scoring":
        with torch.no_grad():
            case.head.eval()
            case.forward(smoothing=False)
            case.head.train()
        return
    if step == "search":
        # In half precision: searches are not mixed.
        if case.shape.dtype != "amp" and case.head.finds_best:
            case.search()
        return
    case.prepare()
    case.run(smoothing=step == "smoothing")
    case.release()


def everything(
    heads: Iterable[str],
    dtypes: Sequence[str],
    sizes: Sequence[tuple[int, int, int]],
    steps: Sequence[str] = ("smoothing",),
) -> tuple[list[Signature], list[str]]:
    """The distinct kernels of heads in all types and sizes (V, d, N), and heads that launch none though they
    should."""
    recorder, counts = Recorder(), dict.fromkeys(heads, 0)
    for name in counts:
        for size in sizes:
            for dtype in dtypes:
                # A table of a million rows takes its time, even where nothing is launched.
                some = steps[:1] if size[0] > _MANY else steps
                counts[name] += recorder.case(name, Shape(*size, dtype), some)
    idle = [name for name, count in counts.items() if count == 0 and KINDS[name].kernels]
    return list(recorder.found.values()), idle


def representatives(signatures: Sequence[Signature]) -> list[Signature]:
    """Of those that differ in sizes alone, the last."""
    last = {each.likeness: each for each in signatures}
    return [each for each in signatures if each is last[each.likeness]]
