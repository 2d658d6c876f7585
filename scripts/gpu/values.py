"""Part (a): losses, gradients and searches of every head against float64, against plain torch, and twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from mhe_fairseq.heads.kernels import dispatch, launch
from scripts.gpu.cases import DTYPES, KINDS, MAIN, SMOOTHING, Case, Shape
from scripts.gpu.parts import Check, Outcome, Part, Seen, Settings

#: Largest relative error (of norms) that is right.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-3}

#: A larger one is right too where plain torch's own in the same type is nearly as large.
AS_PLAIN = 1.5

#: Candidates of a search.
_BEST = 5

#: A vocabulary with holes, whatever the digits, and tokens of a batch: an odd number.
SMALL = Shape(997, 64, 77)
LARGE = Shape(30_011, 512, 1001)

#: Heads that are looked at in each type, most important first: every kernel is compiled for each of them.
TYPES: dict[str, Sequence[str]] = {"bf16": tuple(KINDS), "fp32": tuple(KINDS), "fp16": MAIN}

_SMOKE = Shape(41, 16, 5)
#: Heads that the interpreter is quick with.
_QUICK = ("cascade", "product")


def checks(settings: Settings) -> Sequence[Check]:
    """Small sizes in all types, then few tokens, then sizes of a real layer in bf16."""
    if settings.smoke:
        names = (*MAIN, "cascade-3", "cascade-singles", "product-tied", "softmax")
        return [
            *(
                Check(f"{name} fp32", partial(_values, name, _with(_SMOKE, "fp32"), settings))
                for name in names
            ),
            *(Check(f"{name} bf16", partial(_values, name, _SMOKE, settings)) for name in _QUICK),
            *(Check(f"{name}, few tokens", partial(_few, name, _SMOKE, settings)) for name in _QUICK),
        ]
    return [
        *(
            Check(f"{name} {dtype}", partial(_values, name, _with(SMALL, dtype), settings))
            for dtype, names in TYPES.items()
            for name in names
        ),
        *(Check(f"{name}, few tokens", partial(_few, name, SMALL, settings)) for name in KINDS),
        *(
            Check(f"{name} bf16, V = {LARGE.vocab:,}", partial(_values, name, LARGE, settings))
            for name in MAIN
        ),
    ]


def _with(shape: Shape, dtype: str) -> Shape:
    return Shape(shape.vocab, shape.dim, shape.tokens, dtype)


def _values(name: str, shape: Shape, settings: Settings) -> Seen:
    """One head in one type: relative errors against float64 and against plain torch in the same type."""
    case = Case(name, shape, settings.device, shuffled=True)
    exact = Case(name, shape, settings.device, shuffled=True)
    exact.model.load_state_dict(case.model.state_dict())
    exact.model.double()
    exact.features = case.features.detach().double().requires_grad_()
    weights = torch.rand(2, shape.tokens, generator=torch.Generator().manual_seed(2)).to(settings.device)
    with plain():
        expected = _everything(exact, weights)
        same_type = _everything(case, weights)
    actual = _everything(case, weights)
    again = _everything(case, weights)
    # Once more, to see that a head which gave up its kernels has not gone on in plain torch unnoticed.
    with launches() as count:
        case.prepare()
        case.run()
    against = {key: _error(actual[key], value) for key, value in expected.items()}
    tolerance = TOLERANCE[shape.dtype]
    of_plain = {key: _error(same_type[key], value) for key, value in expected.items() if key in same_type}
    wrong = [
        f"{key} is off by {error:.1e}"
        for key, error in against.items()
        if not error <= max(tolerance, AS_PLAIN * of_plain.get(key, 0.0))
    ]
    missing = sorted(expected.keys() ^ actual.keys())
    wrong += [f"{key} is there once only" for key in missing]
    changed = [key for key in actual if not torch.equal(actual[key], again[key])]
    if KINDS[name].kernels:
        # Sums that torch makes in any order, as of a softmax's rows, are not ours.
        wrong += [f"{key} is another the second time" for key in changed]
        wrong += [] if count[0] else ["no kernel was launched"]
    return not wrong, {
        "wrong": "; ".join(wrong),
        "errors": against,
        "errors_of_plain": of_plain,
        "changed": changed,
        "kernels_against_plain": {
            key: _error(actual[key], same_type[key]) for key in actual if key in same_type
        },
        "launches": count[0],
    }


def _few(name: str, shape: Shape, settings: Settings) -> Seen:
    """Batches of no token, of one and of two: finite losses, and gradients of every parameter."""
    wrong = []
    case = Case(name, shape, settings.device)
    for tokens in (0, 1, 2):
        case.batch(tokens)
        case.prepare()
        loss = case.forward()
        assert loss.smooth is not None
        (loss.nll.sum() + loss.smooth.sum()).backward()
        if tuple(loss.nll.shape) != (tokens,):
            wrong.append(f"N = {tokens}: the loss has shape {tuple(loss.nll.shape)}")
        for key, value in (("nll", loss.nll), ("smooth", loss.smooth), *case.gradients()):
            if not value.isfinite().all():
                wrong.append(f"N = {tokens}: {key} is not finite")
            elif not tokens and value.any():
                wrong.append(f"N = 0: {key} is not zero")
    return not wrong, {"wrong": "; ".join(wrong)}


def _everything(case: Case, weights: Tensor) -> dict[str, Tensor]:
    """What a head computes: losses and gradients of a training step, then what a search asks for."""
    case.updates = 0  # the same samples each time
    case.prepare()
    loss = case.forward()
    assert loss.smooth is not None
    first, second = weights.to(loss.nll.dtype)
    total = (1.0 - SMOOTHING) * (loss.nll * first).sum() + SMOOTHING * (loss.smooth * second).sum()
    total.backward()
    found = {"nll": loss.nll.detach(), "smooth": loss.smooth.detach()}
    found |= {f"d {key}": value for key, value in case.gradients()}
    case.release()
    case.head.eval()
    with torch.no_grad():
        found["scoring"] = case.forward(smoothing=False).nll
        found["log_probs"] = case.head.log_probs(case.features)
        found["topk"], tokens = case.head.topk(case.features, _BEST)
        found["topk tokens"] = found["log_probs"].gather(1, tokens)
    case.head.train()
    return found


def _error(actual: Tensor, expected: Tensor) -> float:
    """Relative, of norms; of zeros, absolute."""
    expected = expected.double()
    norm = float(expected.norm())
    return float((actual.double() - expected).norm()) / (norm or 1.0)


@contextmanager
def plain() -> Iterator[None]:
    """Heads run in plain torch within."""
    before = os.environ.get(dispatch.SWITCH)
    os.environ[dispatch.SWITCH] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[dispatch.SWITCH]
        else:
            os.environ[dispatch.SWITCH] = before


@contextmanager
def launches() -> Iterator[list[int]]:
    """Count the launches within, in a list of one number."""
    count = [0]

    def watcher(seen: launch.Launch) -> bool:
        count[0] += 1
        return True

    with launch.watched(watcher):
        yield count


def show(outcome: Outcome) -> None:
    """The largest errors of each head, by type."""
    rows = []
    for name in KINDS:
        cells = []
        for dtype in DTYPES:
            seen = outcome.named(f"{name} {dtype}")
            errors = {} if seen is None else seen.get("errors", {})
            if not errors:
                cells.append("-" if seen is None else "failed")
                continue
            key = max(errors, key=lambda each: errors[each])
            cells.append(f"{errors[key]:.1e} ({key}){'' if seen and seen['ok'] else ' WRONG'}")
        if any(cell != "-" for cell in cells):
            rows.append([name, *cells])
    title = "Largest relative error against float64"
    outcome.tables.append((title, ["head", *DTYPES], rows))


PART = Part("a", "values", 50, checks, show)
