#!/usr/bin/env python3
"""The protocol of face recognition: images of classes that a training never saw, compared by their features.

    python examples/classification/verify.py --data glyphs --run runs/faces

Verification: a pair of images is accepted if the cosine of their features is above a threshold, which is set
so that 1%, or 0.1%, of all pairs of different classes are accepted (false accept rate, FAR). The true accept
rate (TAR) is the share of the pairs of one class that are. Identification: the first image of every class is
in the gallery, and each other image gets the class of the nearest one there; rank-1 is the share
that is right.

DATA/unseen.npz, or DATA/unseen/CLASS/*.png, has the images (--split names another). RUN/verify.json gets the
results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import checkpoints  # noqa: E402
import images  # noqa: E402
from network import Network, normalised  # noqa: E402

from mhe_fairseq.errors import MHEError  # noqa: E402

#: False accept rates.
RATES = (1e-2, 1e-3)

#: Steps that cosines are counted in.
_STEPS = 200_000

#: Rows compared with all others at a time.
_ROWS = 512


def network_of(state: dict) -> Network:  # type: ignore[type-arg]
    """The network of a checkpoint, for evaluation."""
    args = state["args"]
    channels = state["network"]["stem.weight"].size(1)
    network = Network(channels, args["widths"], args["depth"], args["dim"], args["norm"])
    network.load_state_dict(state["network"])
    return network.eval()


@torch.no_grad()
def features_of(network: Network, split: images.Split, batch: int, workers: int) -> tuple[Tensor, Tensor]:
    """Directions of length 1, and labels, of all images that can be read. Shape: -> (N, d), (N,)."""
    found, labels, unreadable = [], [], []
    device = next(network.parameters()).device
    for each in images.batches(split, images.in_order(len(split), batch), workers):
        found.append(F.normalize(network(normalised(each.images.to(device)))))
        labels.append(each.labels)
        unreadable += each.unreadable
    images.say("images that could not be read, left out", unreadable)
    return torch.cat(found), torch.cat(labels).to(device)


def accept_rates(features: Tensor, labels: Tensor, rates: tuple[float, ...]) -> tuple[list[float], int, int]:
    """True accept rates, per cent, at false accept rates; numbers of pairs of one class and of two.

    Shape: (N, d), (N,) long.

    Raises:
        MHEError: there are no pairs of one class, or of two.
    """
    same = torch.zeros(_STEPS, dtype=torch.long)
    other = torch.zeros(_STEPS, dtype=torch.long)
    for begin in range(0, len(features), _ROWS):
        rows = slice(begin, begin + _ROWS)
        cosines = features[rows] @ features[begin:].T
        # Every pair once.
        later = torch.ones_like(cosines, dtype=torch.bool).triu(diagonal=1)
        is_same = labels[rows].unsqueeze(1) == labels[begin:]
        step = ((cosines + 1) * (_STEPS / 2)).long().clamp(0, _STEPS - 1)
        same += step[later & is_same].bincount(minlength=_STEPS).cpu()
        other += step[later & ~is_same].bincount(minlength=_STEPS).cpu()
    if not same.any() or not other.any():
        raise MHEError(
            f"{len(labels)} images of {len(labels.unique())} classes have {int(same.sum())} pairs of one "
            f"class and {int(other.sum())} of two; verification needs both"
        )
    # Accepted with a threshold at each step.
    same_above, other_above = (each.flip(0).cumsum(0).flip(0) for each in (same, other))
    found = []
    for rate in rates:
        allowed = rate * int(other.sum())
        threshold = int((other_above > allowed).sum())
        right = int(same_above[threshold]) if threshold < _STEPS else 0
        found.append(100 * right / int(same.sum()))
    return found, int(same.sum()), int(other.sum())


def rank_1(features: Tensor, labels: Tensor) -> float:
    """Per cent of images that are nearest to their class's first one. Shape: (N, d), (N,) long."""
    classes, place = labels.unique(return_inverse=True)
    first = torch.full_like(classes, len(labels)).scatter_reduce(
        0, place, torch.arange(len(labels), device=labels.device), "amin"
    )
    is_probe = torch.ones_like(labels, dtype=torch.bool)
    is_probe[first] = False
    probes = is_probe.nonzero().squeeze(1)
    right = sum(
        int(((features[part] @ features[first].T).argmax(1) == place[part]).sum())
        for part in probes.split(_ROWS)
    )
    return 100 * right / max(1, len(probes))


def run(args: argparse.Namespace) -> None:
    state = checkpoints.read(args.run / "checkpoint.pt")
    network = network_of(state).to(args.device)
    split = images.needed(args.data, args.split, state["args"]["size"])
    if split.channels != network.stem.in_channels:
        raise MHEError(
            f"{args.run} was trained on images of {network.stem.in_channels} channels, those of "
            f"{args.data / args.split} have {split.channels}; give both as archives, or both as folders"
        )
    seen = sorted(set(split.classes) & set(state["classes"]))
    images.say("classes that the training has seen, compared all the same", seen)
    images.say("classes with one image, in the gallery only", images.with_one(split))
    features, labels = features_of(network, split, args.batch, args.workers)
    rates, same, other = accept_rates(features, labels, RATES)
    result = {"classes": len(labels.unique()), "images": len(labels), "pairs": same, "other_pairs": other}
    found = {f"tar_{rate:g}": value for rate, value in zip(RATES, rates, strict=True)}
    found["rank_1"] = rank_1(features, labels)
    (args.run / "verify.json").write_text(json.dumps({**result, **found}, indent=1) + "\n")
    print(f"{len(labels):,} images of {result['classes']:,} classes, {same:,} and {other:,} pairs")
    for rate, value in zip(RATES, rates, strict=True):
        few = "" if other * rate >= 10 else f" (of {other * rate:.1f} pairs that may be accepted: too few)"
        print(f"TAR at FAR {rate:g}: {value:.2f}%{few}")
    print(f"rank-1: {found['rank_1']:.2f}%")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the images' split")
    add("--run", type=Path, required=True, help="folder that train.py wrote")
    add("--split", default="unseen", help="default: %(default)s")
    add("--batch", type=int, default=256, help="images at a time (default: %(default)s)")
    add("--workers", type=int, default=2, help="processes that read a folder's images (default: %(default)s)")
    add("--device", default="cpu", help="default: %(default)s")
    try:
        run(parser.parse_args(argv))
    except (MHEError, OSError) as error:
        print(f"verify.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
