"""The compact search, the V-wide search of the same head, and fairseq's of a softmax: one body, in turns.

    python -m scripts.gpu.search_case '{"head": "cascade", "vocab": 32768, ...}' RESULT.json

Needs fairseq, so it runs as a command of its own. Weights are scaled so that the next token's entropy is as
``mhe bench decode`` has it; every translation is of the same length.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from mhe_fairseq.bench.decode import (
    DecodeSettings,
    make_batches,
    make_head,
    make_model,
    sample_features,
    sharpen,
)
from mhe_fairseq.coding import Codebook, plan_lengths
from mhe_fairseq.heads import CascadeHead, OutputHead
from scripts.gpu.cases import DTYPES
from scripts.gpu.counting import Operators, waits_on_cuda, watching

#: Scores of one search and the other that differ by more, in nats a token, are not the same. fp32.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Spec:
    """What to search.

    Attributes:
        head: of ``HEADS``.
        vocab: V.
        dim: of the transformer, as ``layers`` (of encoder and decoder), as ``mhe bench decode`` has them.
        sentences: translated in a run, ``batch`` at a time, to ``length`` tokens, with this ``beam``.
        rounds: timed runs of each search.
        dtypes: half-precision types; searches are timed in the first.
        device: "cuda" or "cpu".
    """

    head: str
    vocab: int
    dim: int
    layers: int
    sentences: int
    batch: int
    length: int
    beam: int
    rounds: int
    dtypes: list[str]
    device: str

    @property
    def settings(self) -> DecodeSettings:
        return DecodeSettings(
            self.dim, self.layers, self.sentences, self.length, self.beam, self.batch, 1,
            torch.device(self.device),
        )  # fmt: skip


#: Sentences -> hypotheses, best first, each with "tokens" and "score".
Found = list[list[dict[str, Tensor]]]


class Searches:
    """A body, a head and a softmax; searches by name: "compact", "wide" and "softmax"."""

    names = ("compact", "wide", "softmax")

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        torch.manual_seed(1)
        self.task, self.model = make_model(spec.vocab, spec.settings)
        self.batches = make_batches(self.task, spec.settings)
        features = sample_features(self.task, self.model, spec.settings)
        head, softmax = (_Layer(name, spec.dim, spec.vocab) for name in (spec.head, "softmax"))
        self.heads = {"compact": head.head, "wide": head.head, "softmax": softmax.head}
        for layer in (head, softmax):
            layer.to(spec.device).eval()
            sharpen(layer, features)
        # The body's input reads rows of the head that it was built with.
        self.parts = nn.ModuleList([self.model, self.model.decoder.head, head, softmax])

    def cast(self, dtype: torch.dtype) -> None:
        """Make everything of this type."""
        self.parts.to(self.spec.device, dtype)

    def generator(self, name: str, length: int | None = None) -> Any:
        """A search, for translations of ``length`` tokens (default: as told) and EOS."""
        length = self.spec.length if length is None else length
        options = Namespace(beam=self.spec.beam, min_len=length, max_len_a=0, max_len_b=length)
        self.model.decoder.head = self.heads[name]
        wide = None if name == "compact" else SequenceGenerator
        return self.task.build_generator([self.model], options, seq_gen_cls=wide)

    def run(self, name: str, generator: Any, batches: int | None = None) -> Found:
        self.model.decoder.head = self.heads[name]
        return [
            sentence
            for batch in self.batches[:batches]
            for sentence in generator.generate([self.model], batch)
        ]

    def synchronize(self) -> None:
        if self.spec.device == "cuda":
            torch.cuda.synchronize()


class _Layer(nn.Module):
    """A head, and the table that it is tied to: not the body's embedding, so that scaling it leaves the body
    as it is. Its tokens are in no order, as in a learned codebook."""

    def __init__(self, name: str, dim: int, vocab: int) -> None:
        super().__init__()
        self.head: OutputHead
        self.table: nn.Embedding | None = None
        if name == "cascade-tied":
            slots = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))
            self.table = nn.Embedding(vocab, dim)
            nn.init.normal_(self.table.weight, std=dim**-0.5)
            self.head = CascadeHead(dim, Codebook(plan_lengths(vocab), slots), tied=self.table)
        else:
            self.head = make_head(name, dim, Codebook(plan_lengths(vocab), vocab_size=vocab))

    def log_probs(self, features: Tensor) -> Tensor:
        return self.head.log_probs(features)


def compare(one: Found, other: Found) -> dict[str, Any]:
    """How far two searches differ: in tokens, and in scores where these are the same."""
    best_differ = differ = 0
    scores = 0.0
    lost: list[float] = []
    for ours, theirs in zip(one, other, strict=True):
        same = [
            a["tokens"].shape == b["tokens"].shape and bool((a["tokens"] == b["tokens"]).all())
            for a, b in zip(ours, theirs, strict=False)
        ]
        differ += max(len(ours), len(theirs)) - sum(same)
        best_differ += not same[0]
        lost.append(float(theirs[0]["score"]) - float(ours[0]["score"]))
        for is_same, a, b in zip(same, ours, theirs, strict=False):
            if is_same:
                gap = (a["positional_scores"].float() - b["positional_scores"].float()).abs().max()
                scores = max(scores, float(gap))
    return {
        "sentences": len(one),
        "hypotheses": sum(max(len(a), len(b)) for a, b in zip(one, other, strict=True)),
        "differ": differ,
        "best_differ": best_differ,
        "largest_score_difference": scores,
        "mean_score_lost": statistics.fmean(lost),
    }


def timed(searches: Searches, rounds: int) -> dict[str, dict[str, Any]]:
    """Tokens per second of each search: the median of runs in turns, after one that warms up."""
    generators = {name: searches.generator(name) for name in searches.names}
    tokens: dict[str, int] = {}
    for name, generator in generators.items():
        tokens[name] = sum(len(hypotheses[0]["tokens"]) for hypotheses in searches.run(name, generator))
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for _ in range(rounds):
        for name, generator in generators.items():
            searches.synchronize()
            begin = time.perf_counter()
            searches.run(name, generator)
            searches.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return {
        name: {
            "tokens": tokens[name],
            "seconds": seconds[name],
            "tokens_per_second": tokens[name] / statistics.median(seconds[name]),
        }
        for name in generators
    }


def per_step(searches: Searches, name: str) -> dict[str, float]:
    """What one more token of every translation of a batch costs: operators, launches, waits of the host."""
    # In the interpreter a step takes a second.
    short, long = (4, 8) if searches.spec.device == "cuda" else (1, 2)

    def counts(length: int) -> tuple[float, float, float]:
        generator = searches.generator(name, length)

        def run() -> object:
            return searches.run(name, generator, batches=1)

        run()
        launches: list[Any] = []
        operators = Operators()
        with watching(launches.append), operators:
            run()
        waits = waits_on_cuda(run) if searches.spec.device == "cuda" else operators.waits.total()
        return operators.count.total(), len(launches), waits

    few, many = counts(short), counts(long)
    steps = long - short
    keys = ("operators", "launches", "waits")
    return {key: (b - a) / steps for key, a, b in zip(keys, few, many, strict=True)}


def examine(spec: Spec) -> dict[str, Any]:
    """All that is to be seen of a head."""
    searches = Searches(spec)
    reason = searches.generator("compact").why_wide()
    if reason is not None:
        return {"wrong": f"no compact search: {reason}"}
    found: dict[str, Any] = {"wrong": "", "differences": {}}

    def look(dtype: str) -> None:
        searches.cast(DTYPES[dtype])
        runs: dict[str, Callable[[], Found]] = {
            name: lambda name=name: searches.run(name, searches.generator(name))  # type: ignore[misc]
            for name in ("compact", "wide")
        }
        found["differences"][dtype] = compare(runs["compact"](), runs["wide"]())

    look("fp32")
    exact = found["differences"]["fp32"]
    if exact["differ"] or exact["largest_score_difference"] > TOLERANCE:
        found["wrong"] = (
            f"in fp32 {exact['differ']} of {exact['hypotheses']} hypotheses differ, and scores by up to "
            f"{exact['largest_score_difference']:.1e} nats"
        )
    for number, dtype in enumerate(spec.dtypes):
        look(dtype)
        if not number:
            found["dtype"] = dtype
            found["speed"] = timed(searches, spec.rounds)
            found["per_step"] = {name: per_step(searches, name) for name in searches.names}
    return found


def main() -> None:
    found = examine(Spec(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
