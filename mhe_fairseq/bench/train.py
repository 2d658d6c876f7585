"""Training steps of every head against the dense softmax: time, memory, and growth with the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mhe_fairseq.bench import bars
from mhe_fairseq.bench.machine import available_memory
from mhe_fairseq.bench.memory import Peak, measure_peak
from mhe_fairseq.bench.steps import Batch, TrainStep, make_step
from mhe_fairseq.bench.timing import Samples, clock_of, fit_exponent, interleave
from mhe_fairseq.coding import Codebook, plan_lengths
from mhe_fairseq.errors import MHEError

#: The heads measured with a large vocabulary, beside the softmax; and those whose growth is measured.
LARGE_HEADS = ("product", "cascade")
GROWTH_HEADS = ("product", "cascade")

#: A large vocabulary's dense softmax takes long: at most so many rounds of it. And of growth.
LARGE_ROUNDS = 3
GROWTH_ROUNDS = 5

#: N x V tensors that the dense softmax holds at its peak (as measured), and one more to be sure.
_DENSE_TENSORS = 4

_FLOAT_BYTES = 4

#: Told what is done, rounds done and rounds in all.
Progress = Callable[[str, int, int], None]


def _silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Settings:
    """Of all parts of a run.

    Attributes:
        dim: d.
        tokens: N.
        smoothing: label smoothing in the loss.
        seed: of weights, features and targets.
        device: to measure on.
        prototypes: rows of each of a cascade's groups.
        cpu_time: times are of the processor.
    """

    dim: int
    tokens: int
    smoothing: bool
    seed: int
    device: torch.device
    prototypes: int = 1
    cpu_time: bool = False

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class HeadResult:
    """One head at one vocabulary.

    Attributes:
        head: name, of ``steps.HEADS``.
        samples: of a step.
        ratio: the dense softmax's median time divided by the head's.
        ratio_range: least and largest ratio of a round.
        ratio_bar: the least ratio asked for, or None.
        memory: of a step.
        memory_share: extra memory, divided by the dense softmax's.
        memory_bar: the largest share asked for, or None.
        parameters: added to the model.
    """

    head: str
    samples: Samples
    ratio: float
    ratio_range: tuple[float, float]
    ratio_bar: float | None
    memory: Peak
    memory_share: float
    memory_bar: float | None
    parameters: int


@dataclass(frozen=True)
class ShapeResult:
    """All heads at one vocabulary, measured in one interleaved run of so many rounds."""

    codebook: Codebook
    rounds: int
    heads: list[HeadResult]


@dataclass(frozen=True)
class GrowthResult:
    """One head at several vocabularies.

    Attributes:
        head: name.
        vocabs: V, rising.
        steps: of forward and backward.
        optimizer: of the optimiser step on all of the head's parameters, not part of ``steps``.
        exponent: of V in the time of a step.
        optimizer_exponent: of V in the time of the optimiser step.
        bar: the largest ``exponent`` asked for, or None.
    """

    head: str
    vocabs: list[int]
    steps: list[Samples]
    optimizer: list[Samples]
    exponent: float
    optimizer_exponent: float
    bar: float | None


def measure_shape(
    codebook: Codebook, heads: Sequence[str], rounds: int, settings: Settings, progress: Progress = _silent
) -> ShapeResult:
    """Measure heads against the dense softmax, which is measured in any case.

    Raises:
        MHEError: a head cannot be made for this codebook.
    """
    names = ["softmax", *(name for name in heads if name != "softmax")]
    vocab, dim, tokens = len(codebook), settings.dim, settings.tokens
    title = f"V = {vocab:,}"
    progress(title, 0, rounds)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        batch = Batch.random(vocab, dim, tokens, settings.device)
        steps = {
            name: make_step(name, codebook, batch, settings.smoothing, settings.prototypes) for name in names
        }
        peaks = {name: _peak(step) for name, step in steps.items()}
        samples = interleave(
            steps,
            rounds,
            synchronize=settings.synchronize,
            clock=clock_of(settings.cpu_time),
            progress=lambda done: progress(title, done, rounds),
        )
    dense = samples["softmax"]
    results = []
    for name in names:
        ratios = [a / b for a, b in zip(dense.seconds, samples[name].seconds, strict=True)]
        results.append(
            HeadResult(
                head=name,
                samples=samples[name],
                ratio=dense.median / samples[name].median,
                ratio_range=(min(ratios), max(ratios)),
                ratio_bar=bars.ratio_bar(vocab, dim, tokens, name),
                memory=peaks[name],
                memory_share=peaks[name].extra / peaks["softmax"].extra,
                memory_bar=bars.memory_bar(vocab, dim, tokens, name),
                parameters=steps[name].added,
            )
        )
    return ShapeResult(codebook, rounds, results)


def measure_growth(
    vocabs: Sequence[int],
    heads: Sequence[str],
    rounds: int,
    settings: Settings,
    progress: Progress = _silent,
) -> list[GrowthResult]:
    """Measure heads at several vocabularies, all in one interleaved run; then the optimiser steps.

    The optimiser steps are interleaved too, but for one vocabulary at a time: their moments are twice the
    parameters.

    Raises:
        MHEError: a head cannot be made for a vocabulary.
    """
    vocabs = sorted(vocabs)
    progress("growth", 0, rounds)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        steps: dict[tuple[str, int], TrainStep] = {}
        for vocab in vocabs:
            codebook = Codebook(plan_lengths(vocab), vocab_size=vocab)
            batch = Batch.random(vocab, settings.dim, settings.tokens, settings.device)
            for name in heads:
                steps[name, vocab] = make_step(name, codebook, batch, settings.smoothing, settings.prototypes)
        samples = interleave(
            steps,
            rounds,
            synchronize=settings.synchronize,
            clock=clock_of(settings.cpu_time),
            progress=lambda done: progress("growth", done, rounds),
        )
        optimizer: dict[tuple[str, int], Samples] = {}
        for index, vocab in enumerate(vocabs):
            progress("optimiser steps", index, len(vocabs))
            adams = {(name, vocab): _AdamStep(steps[name, vocab]) for name in heads}
            optimizer.update(interleave(adams, rounds, settings.synchronize, clock_of(settings.cpu_time)))
            # The moments and gradients, before the next ones are made.
            del adams
            for name in heads:
                steps[name, vocab].release()
        progress("optimiser steps", len(vocabs), len(vocabs))
    results = []
    for name in heads:
        ours, theirs = [samples[name, v] for v in vocabs], [optimizer[name, v] for v in vocabs]
        results.append(
            GrowthResult(
                head=name,
                vocabs=vocabs,
                steps=ours,
                optimizer=theirs,
                exponent=fit_exponent(vocabs, [s.median for s in ours]),
                optimizer_exponent=fit_exponent(vocabs, [s.median for s in theirs]),
                bar=bars.exponent_bar(vocabs, settings.dim, settings.tokens),
            )
        )
    return results


def check_shape_memory(vocab: int, heads: Sequence[str], settings: Settings) -> None:
    """Refuse, before the work, what memory will not do for: the system would end the process without a word.

    Raises:
        MHEError: less is available than ``measure_shape`` needs.
    """
    # Weights of all, a gradient of one.
    tables = (len(heads) + 2) * vocab * settings.dim
    _check_memory(
        f"the dense softmax with V = {vocab:,} and N = {settings.tokens:,}",
        _FLOAT_BYTES * (_DENSE_TENSORS * settings.tokens * vocab + tables),
        settings.device,
    )


def check_growth_memory(vocabs: Sequence[int], heads: Sequence[str], settings: Settings) -> None:
    """The same for ``measure_growth``.

    Raises:
        MHEError: less is available.
    """
    # All weights, and for the largest a gradient and two moments; only the cascade has V rows.
    tables = (sum(vocabs) + 3 * max(vocabs)) * settings.dim if "cascade" in heads else 0
    _check_memory(f"growth up to V = {max(vocabs):,}", _FLOAT_BYTES * tables, settings.device)


def _check_memory(what: str, needed: int, device: torch.device) -> None:
    available = available_memory(device)
    if available is not None and needed > available:
        raise MHEError(
            f"{what} takes about {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are available; "
            "give a smaller vocabulary (--vocab, --large-vocab, --growth)"
        )


class _AdamStep:
    """The optimiser step of a layer: fused Adam, dense gradients."""

    def __init__(self, step: TrainStep) -> None:
        step.prepare()
        step.run()
        self._adam = torch.optim.Adam(step.parameters, lr=1e-4, fused=True)

    def prepare(self) -> None:
        """The gradients stay as they are."""

    def run(self) -> None:
        self._adam.step()

    def release(self) -> None:
        """They are needed in its next turn."""


def _peak(step: TrainStep) -> Peak:
    step.prepare()
    peak = measure_peak(step.loss, step.parameters)
    step.release()
    return peak
