#!/usr/bin/env python3
"""Bias and noise of a sampling head's loss and gradients, with the present estimate and with others.

    python scripts/study/sampling_bias.py checkpoint_best.pt --data data-bin --codebook clusters.codes

Nothing is trained: features and rows are those of a trained model, a softmax or a sampling head, on text of
its training. Groups are drawn many times, and what each estimate gives is compared with the exact softmax.
Estimates are in sampling_estimates.py. Prints a line of JSON for each: how many groups a token is scored on;
of log Z the mean error and its noise, in nats; of the gradients by the features and by the table's rows the
error of the mean over draws ("bias") and the deviation of one draw ("noise"), as shares of the exact
gradient's length; the cosine of the mean gradient by the features and the exact one; how hard the half of the
groups that is drawn least is pushed down, as a share of what would be right ("rare"); and of predicted masses
their divergence from the exact ones, in nats.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch import Tensor

from mhe_fairseq.cli.analyze_data import Subset, check_folders
from mhe_fairseq.cli.analyze_model import LoadedModel, least_positions
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import SamplingHead, SoftmaxHead
from mhe_fairseq.heads.sampling.group_sample import expected_share, inclusion_probabilities, sample_groups
from mhe_fairseq.heads.sampling.head import PARTS
from mhe_fairseq.heads.sampling.predicted import ANYWAY, among, capped, systematic_rows
from scripts.study import sampling_estimates as estimates
from scripts.study.sampling_estimates import Drawn, Estimator
from scripts.study.sampling_masses import Masses, fitted, groups_of, least_squares, of_moments

#: Width that the gradient by rows is projected to, at random: lengths stay, at an eighth of the work.
NARROW = 16

#: Rows of a group, of the predictions that are tried.
ROWS = (1, 4)

#: Tokens that a prediction is fitted on.
FITTED = 8192


class Exact:
    """The exact gradients, and those that given shares of groups would be."""

    def __init__(self, masses: Masses) -> None:
        head, self.share = masses.head, masses.log_mass.softmax(1)
        weight, x = head.table.weight, masses.features
        narrow = torch.randn(x.size(1), NARROW, generator=torch.Generator().manual_seed(1)) / NARROW**0.5
        self._narrow, self._group = x @ narrow, head.group_of_token
        self._within = torch.empty(len(x), len(weight))
        means = []
        for tokens in groups_of(head):
            soft = (x @ weight[tokens].T).softmax(1)
            self._within[:, tokens] = soft
            means.append(soft @ weight[tokens])
        self._means = torch.stack(means, dim=1)
        self.by_features = self.features_of(self.share) - weight[masses.target]
        gold = torch.zeros(len(weight), NARROW).index_add_(0, masses.target, self._narrow)
        self.by_rows = self.rows_of(self.share) - gold

    def features_of(self, share: Tensor) -> Tensor:
        """The gradient by features of log Z. Shape: (N, L) -> (N, d)."""
        return torch.bmm(share.unsqueeze(1), self._means).squeeze(1)

    def rows_of(self, share: Tensor) -> Tensor:
        """The gradient by rows of log Z, projected. Shape: (N, L) -> (V, NARROW)."""
        return (share[:, self._group] * self._within).T @ self._narrow


class Draws:
    """Samples of the groups of a batch, all with about G groups a token and the gold one.

    Args:
        masses: of the batch.
        groups: G.
        kind: "parts", as the head draws; "parts by mass", each part in proportion to its tokens' predicted
            masses; "tokens by mass", each token for itself.
        predicted: (N, L) log masses, for what draws by them.
    """

    def __init__(self, masses: Masses, groups: int, kind: str, predicted: Tensor | None) -> None:
        self._masses, self._kind, self._groups = masses, kind, groups
        head, count = masses.head, len(masses.target)
        prior = expected_share(head.group_of_token, head._sizes)
        edges = [count * part // PARTS for part in range(PARTS + 1)]
        self._parts = list(zip(edges[:-1], edges[1:], strict=True))
        if kind == "parts":
            inclusion = inclusion_probabilities(prior, groups).expand(count, -1)
        else:
            assert predicted is not None
            share = (1 - ANYWAY) * predicted.double().softmax(1) + ANYWAY * prior
            if kind == "parts by mass":
                share = torch.cat(
                    [share[a:b].mean(0, keepdim=True).expand(b - a, -1) for a, b in self._parts]
                )
            inclusion = capped(share, groups)
        self._inclusion = inclusion
        self._gold = torch.zeros_like(inclusion, dtype=torch.bool)
        self._gold[torch.arange(count), masses.gold] = True
        self.sure = (inclusion >= 1) | self._gold
        self.weight = inclusion.masked_fill(self._gold, 1.0).float()

    def draw(self, generator: torch.Generator) -> Tensor:
        """Shape: (N, L) bool."""
        if self._kind == "tokens by mass":
            return self._systematic(self._inclusion, generator) | self._gold
        drawn = self.sure.clone()
        if self._kind == "parts":
            free = (self._inclusion[0] < 1).nonzero()[:, 0]
            samples = sample_groups(self._inclusion[0, free].numpy(), generator, PARTS)
            for (begin, end), sample in zip(self._parts, samples, strict=True):
                drawn[begin:end, free[torch.from_numpy(sample)]] = True
            return drawn
        for begin, end in self._parts:
            drawn[begin:end] |= self._systematic(self._inclusion[begin : begin + 1], generator)
        return drawn

    def _systematic(self, inclusion: Tensor, generator: torch.Generator) -> Tensor:
        return among(systematic_rows(inclusion, self._groups, generator), inclusion.size(1))


# ---- measuring


def measure(
    masses: Masses,
    exact: Exact,
    draws: Draws,
    methods: dict[str, tuple[Estimator, Tensor | None]],
    count: int,
) -> Iterator[dict[str, Any]]:
    """A record for each of several estimates from the same draws.

    Args:
        methods: name -> estimate, and the predicted masses that it reads.
        count: draws, an even number.
    """
    generator = torch.Generator().manual_seed(1)
    log_z = masses.log_mass.logsumexp(1)
    sums = {name: [torch.zeros_like(exact.share) for _ in range(2)] for name in methods}
    errors: dict[str, list[Tensor]] = {name: [] for name in methods}
    noise: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    scored = 0.0
    for number in range(count):
        drawn = draws.draw(generator)
        scored += float(drawn.sum()) / len(drawn) / count
        for name, (method, predicted) in methods.items():
            value, share = method(Drawn(masses.log_mass, drawn, draws.weight, draws.sure, predicted))
            errors[name].append(value - log_z)
            sums[name][number % 2] += share * 2 / count
            off = share - exact.share
            # The rows' cost a table each.
            rows = float(exact.rows_of(off).square().sum()) if number < count // 4 else float("nan")
            noise[name].append((float(exact.features_of(off).square().sum()), rows))
    rare = rarely_drawn(masses.head)
    lengths = [float(each.square().sum()) for each in (exact.by_features, exact.by_rows)]
    for name in methods:
        error, means = torch.stack(errors[name]), [each - exact.share for each in sums[name]]
        squares = torch.tensor(noise[name], dtype=torch.float64).nanmean(0).tolist()
        record: dict[str, Any] = {
            "estimate": name,
            "groups": round(scored, 2),
            "log_z_bias": round(float(error.mean()), 5),
            "log_z_noise": round(float(error.var(0).mean().sqrt()), 5),
        }
        for at, (side, of) in enumerate((("features", exact.features_of), ("rows", exact.rows_of))):
            one, other = of(means[0]), of(means[1])
            # Two halves of the draws: their own noise is not alike, so it does not count as bias.
            bias = max(0.0, float((one * other).sum()))
            record[f"{side}_bias"] = round((bias / lengths[at]) ** 0.5, 4)
            record[f"{side}_noise"] = round((max(0.0, squares[at] - bias) / lengths[at]) ** 0.5, 4)
            if side == "features":
                own = lengths[at] + float(((one + other) * exact.by_features).sum()) + bias
                along = lengths[at] + float(((one + other) / 2 * exact.by_features).sum())
                record["cosine"] = round(along / (own * lengths[at]) ** 0.5, 5)
        mean = (sums[name][0] + sums[name][1]) / 2
        record["rare"] = round(float(mean[:, rare].sum() / exact.share[:, rare].sum()), 4)
        yield record


def rarely_drawn(head: SamplingHead) -> Tensor:
    """The half of the groups that the head draws least."""
    return head.inclusion.argsort()[: len(head.inclusion) // 2]


def study(fit: Masses, masses: Masses, groups: int, draws: int) -> Iterator[dict[str, Any]]:
    """Records of all ways to draw and to estimate."""
    exact = Exact(masses)
    oracle, squares = masses.log_mass, least_squares(fit)(masses.features)
    predictions = {f"{rows} rows": fitted(fit, rows)(masses.features) for rows in ROWS}
    predictions |= {"means": of_moments(masses, False), "means and variances": of_moments(masses, True)}
    plain, conditional = (estimates.plain, None), (estimates.conditional, None)
    some: dict[str, tuple[Estimator, Tensor | None]] = {"plain": plain, "conditional": conditional}
    every = some | {
        "second order": (estimates.second_order, None),
        "jackknife": (estimates.jackknife, None),
        "difference, oracle": (estimates.difference, oracle),
        "difference, least squares": (estimates.difference, squares),
    }
    every |= {f"ratio, {name}": (estimates.ratio, each) for name, each in predictions.items()}
    most = masses.log_mass.size(1) - 1
    ways: list[tuple[str, int, Tensor | None, str, dict[str, tuple[Estimator, Tensor | None]]]] = [
        ("parts", groups, None, "", every),
        ("parts", min(2 * groups, most), None, "", some),
        ("parts", min(4 * groups, most), None, "", some),
        *(("parts by mass", groups, each, name, some) for name, each in predictions.items()),
        *(("tokens by mass", groups, each, name, some) for name, each in predictions.items()),
        ("tokens by mass", groups, oracle, "oracle", some),
        *(("tokens by mass", max(1, groups // 2), each, name, some) for name, each in predictions.items()),
    ]
    known = oracle.softmax(1)
    for kind, count, predicted, source, methods in ways:
        drawing = Draws(masses, count, kind, predicted)
        for record in measure(masses, exact, drawing, methods, draws):
            lost = 0.0
            if predicted is not None:
                ratio = oracle.log_softmax(1) - predicted.log_softmax(1)
                lost = float((known * ratio).sum(1).mean())
            yield {"drawn": kind, "by": source, "divergence": round(lost, 4), **record}


# ---- command line


@torch.no_grad()
def features_and_targets(model: LoadedModel, subset: Subset, count: int) -> tuple[Tensor, Tensor]:
    """Of at least ``count`` tokens of random sentences, and not many more."""
    found: list[tuple[Tensor, Tensor]] = []
    indices = subset.indices(least_positions([model]), drawn=True)
    for sample in subset.samples(subset.batches(indices, max_tokens=4096)):
        found.append(model.features(sample))
        if sum(len(target) for _, target in found) >= count:
            features, target = (torch.cat(each)[:count] for each in zip(*found, strict=True))
            return features, target
    raise MHEError(
        f"the split {subset.name} has {sum(len(target) for _, target in found)} tokens and {count} are "
        "needed; give --tokens or --fitted a lower number"
    )


def with_codebook(table: Tensor, codebook: Codebook) -> SamplingHead:
    head = SamplingHead(table.size(1), codebook)
    head.table.linear.weight.data = table.float()
    return head


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="with a softmax or a sampling head")
    parser.add_argument("--data", required=True, help="folder of fairseq-preprocess")
    parser.add_argument(
        "--codebook", type=Path, action="append", default=[], help="one more to group tokens by"
    )
    parser.add_argument("--subset", default="train", help="split of the data (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=2048, help="measured (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=64, help="of each way (default: %(default)s)")
    parser.add_argument(
        "--fitted",
        type=int,
        default=FITTED,
        help="tokens that predictions are fitted on (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        for name, least in (("tokens", PARTS), ("draws", 8), ("fitted", 256)):
            if getattr(args, name) < least:
                raise MHEError(f"--{name} must be at least {least}, got {getattr(args, name)}")
        check_folders(args.data)
        model = LoadedModel(args.checkpoint, args.data, torch.device("cpu"), purpose="sampling_bias.py")
        head = getattr(model.side, "head", None)
        if not isinstance(head, SoftmaxHead):
            raise MHEError(
                f"checkpoint {args.checkpoint} has a head of {model.head}; give one of softmax or sampling"
            )
        books = {"the head's": head.codebook} | {str(path): Codebook.load(path) for path in args.codebook}
        for name, book in books.items():
            if len(book) != len(head.codebook):
                raise MHEError(f"codebook {name} has {len(book)} tokens and the model {len(head.codebook)}")
        subset = Subset(model.task, args.data, args.subset)
        features, target = features_and_targets(model, subset, args.tokens + args.fitted)
        for name, book in books.items():
            own = with_codebook(head.table.weight.detach(), book)
            parts = [
                (features[: args.tokens], target[: args.tokens]),
                (features[args.tokens :], target[args.tokens :]),
            ]
            masses, fit = (Masses.of(own, *each) for each in parts)
            for record in study(fit, masses, own.groups, args.draws // 2 * 2):
                print(json.dumps({"codebook": name, **record}), flush=True)
    except MHEError as error:
        print(f"sampling_bias.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
