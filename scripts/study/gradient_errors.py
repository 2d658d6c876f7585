#!/usr/bin/env python3
"""How far a sampling head's gradients are from the exact softmax's, over all weights of a trained model.

    python scripts/study/gradient_errors.py checkpoint_last.pt --data data-bin

Nothing is trained, and nothing is dropped out. The gradient of the loss of one batch of training text, label
smoothing 0.1, is taken exactly and with groups drawn many times. Prints a line of JSON for each part of the
weights: the length of its exact gradient; the error of the mean over draws ("bias") and the deviation of one
draw ("noise"), as shares of that length. Parts are the rows of the table of tokens that are targets of the
batch, those of other tokens beyond rank 1,000 of the dictionary, and all weights but the predictor's.
sampling_bias.py compares other estimates, at the features and rows alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch import Tensor

from mhe_fairseq.cli.analyze_data import Subset, check_folders
from mhe_fairseq.cli.analyze_model import LoadedModel, least_positions
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import SamplingHead

#: Tokens of the dictionary that no part but "all weights" has where they are no targets.
FREQUENT = 1000

SMOOTHING = 0.1


class Gradients:
    """Of the loss of one batch, by the parts of a model's weights.

    Args:
        model: whose output layer is ``head``.
        batches: the samples of the batch.
    """

    def __init__(self, model: LoadedModel, head: SamplingHead, batches: list[dict[str, object]]) -> None:
        self._model, self._head, self._batches = model, head, batches
        own = {id(each) for each in head.predictor.parameters()} if head.predictor is not None else set()
        self._weights = [each for each in model.model.parameters() if id(each) not in own]
        self._table = next(at for at, each in enumerate(self._weights) if each is head.table.weight)
        self.tokens, seen = 0, torch.zeros(len(head.table.weight), dtype=torch.bool)
        for sample in batches:
            with torch.no_grad():
                target = model.features(sample)[1]
            seen[target] = True
            self.tokens += len(target)
        others = ~seen
        others[: FREQUENT + 1] = False
        self._rows = {"rows of targets": seen, f"rows of others beyond rank {FREQUENT:,}": others}

    def of(self, draw: int | None) -> dict[str, Tensor]:
        """Part -> its gradient, (n,) fp32: with the groups of the n-th draw, or the exact one without."""
        head = self._head
        head.train()
        head.exact = draw is None
        head.set_num_updates(draw or 0)
        for each in self._weights:
            each.grad = None
        for sample in self._batches:
            features, target = self._model.features(sample)
            made = head(features, target)
            loss = (1 - SMOOTHING) * made.nll + SMOOTHING * made.smooth
            (loss.sum() / self.tokens).backward()
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._weights]
        table = grads[self._table]
        parts = {name: table[rows].flatten() for name, rows in self._rows.items()}
        return parts | {"all weights": torch.cat([each.flatten() for each in grads])}


def measure(gradients: Gradients, draws: int) -> list[dict[str, object]]:
    """A record for each part that has gradients.

    Args:
        draws: an even number.
    """
    exact = gradients.of(None)
    halves = [{name: torch.zeros_like(each) for name, each in exact.items()} for _ in range(2)]
    squares = dict.fromkeys(exact, 0.0)
    for number in range(draws):
        for name, each in gradients.of(number).items():
            off = each - exact[name]
            halves[number % 2][name] += off * 2 / draws
            squares[name] += float(off.square().sum()) / draws
    records: list[dict[str, object]] = []
    for name, whole in exact.items():
        length = float(whole.norm())
        if not length:
            continue  # a small dictionary has no token in it
        # Two halves of the draws: their own noise is not alike, so it does not count as bias.
        bias = max(0.0, float(halves[0][name] @ halves[1][name]))
        noise = max(0.0, squares[name] - bias)
        records.append(
            {
                "part": name,
                "length": float(f"{length:.4g}"),
                "bias": round(bias**0.5 / length, 4),
                "noise": round(noise**0.5 / length, 4),
            }
        )
    return records


def some_batches(model: LoadedModel, subset: Subset, count: int) -> list[dict[str, object]]:
    """Random sentences of at least ``count`` tokens, or all there are."""
    found: list[dict[str, object]] = []
    indices, tokens = subset.indices(least_positions([model]), drawn=True), 0
    for sample in subset.samples(subset.batches(indices, max_tokens=count)):
        found.append(sample)
        tokens += int(sample["ntokens"])
        if tokens >= count:
            break
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="with a sampling head")
    add("--data", required=True, help="folder of fairseq-preprocess")
    add("--subset", default="train", help="split of the data (default: %(default)s)")
    add("--tokens", type=int, default=1024, help="of the batch, at least (default: %(default)s)")
    add("--draws", type=int, default=24, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        for name, least in (("tokens", 1), ("draws", 2)):
            if getattr(args, name) < least:
                raise MHEError(f"--{name} must be at least {least}, got {getattr(args, name)}")
        check_folders(args.data)
        model = LoadedModel(args.checkpoint, args.data, torch.device("cpu"), purpose="gradient_errors.py")
        head = getattr(model.side, "head", None)
        if not isinstance(head, SamplingHead):
            raise MHEError(f"checkpoint {args.checkpoint} has a head of {model.head}; give one of sampling")
        batches = some_batches(model, Subset(model.task, args.data, args.subset), args.tokens)
        gradients = Gradients(model, head, batches)
        for record in measure(gradients, args.draws // 2 * 2):
            print(json.dumps({"tokens": gradients.tokens, **record}), flush=True)
    except MHEError as error:
        print(f"gradient_errors.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
