"""Part (e): the compact search finds what the V-wide search finds, and how fast both and stock's are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scripts.gpu import train_flags
from scripts.gpu.fairseq_logs import Translated, translated
from scripts.gpu.made_data import SOURCE, TARGET, Text, made
from scripts.gpu.parts import Check, Outcome, Part, Seen, Settings

#: In the order of how much each is used.
HEADS = ("cascade", "cascade-tied", "product", "mixture")

#: Times the V-wide search of the same head that the compact search should run at least, by V.
RATIOS = {32_768: 1.3, 262_144: 3.0}

#: Waits of the host that a step of the compact search should add to fairseq's own, at most.
WAITS = 2

#: Base 2, a token: the scores that ``fairseq-generate`` prints for the same words in fp32.
_TOLERANCE = 2e-4

_BEAM = 5


def checks(settings: Settings) -> Sequence[Check]:
    """Heads in one process with both searches; ``fairseq-generate`` with each search, at the smaller V."""
    settings.workshop.open(settings.device.type == "cuda")
    vocabs = train_flags.vocabs(settings)
    order = [(head, vocab) for head in HEADS for vocab in vocabs]
    found = [
        Check(f"{head}, V = {vocab:,}", partial(_searches, head, vocab, settings)) for head, vocab in order
    ]
    name = f"fairseq-generate, V = {vocabs[0]:,}"
    found.insert(len(vocabs), Check(name, partial(_generate, vocabs[0], settings)))
    return found


def spec(head: str, vocab: int, settings: Settings) -> dict[str, Any]:
    """A ``search_case.Spec``, as a dictionary."""
    names = ("dim", "layers", "sentences", "batch", "length", "beam", "rounds")
    sizes = (16, 1, 2, 2, 2, 2, 1) if settings.smoke else (512, 6, 128, 64, 25, _BEAM, 3)
    dtypes = ["fp16"] if settings.smoke else ["fp16", "bf16"]
    told = {"head": head, "vocab": vocab, "dtypes": dtypes, "device": settings.device.type}
    return told | dict(zip(names, sizes, strict=True))


def _searches(head: str, vocab: int, settings: Settings) -> Seen:
    """In fp32 the same hypotheses, token by token, and scores; in half precision, how far they differ."""
    wanted = spec(head, vocab, settings)
    result = settings.workshop.folder / "searches.json"
    result.unlink(missing_ok=True)
    ran = settings.workshop.run("scripts.gpu.search_case", [json.dumps(wanted), str(result)])
    if ran.status:
        return False, {"wrong": ran.trouble, "spec": wanted}
    found = json.loads(result.read_text(encoding="utf-8"))
    return not found["wrong"], found | {"spec": wanted, "command_seconds": round(ran.seconds, 1)}


def _generate(vocab: int, settings: Settings) -> Seen:
    """Whole commands on one checkpoint: ``--task mhe_translation`` searches tables, ``translation`` all V."""
    text = _text(vocab, settings)
    data = made(text, settings)
    paths = {name: _checkpoint(name, data, settings) for name in ("cascade", "stock, not tied")}
    ran = settings.workshop.run("scripts.gpu.sharpened", [str(path) for path in paths.values()])
    if ran.status:
        return False, {"wrong": f"scaling weights: {ran.trouble}"}
    searches = {
        "compact": (paths["cascade"], "mhe_translation"),
        "wide": (paths["cascade"], "translation"),
        "stock": (paths["stock, not tied"], "translation"),
    }
    beam = 2 if settings.smoke else _BEAM
    seen: dict[str, Translated] = {}
    flags: dict[str, list[str]] = {}
    for name, (path, task) in searches.items():
        flags[name] = [
            str(data), "-s", SOURCE, "-t", TARGET, *train_flags.PLUGIN, "--task", task, "--path", str(path),
            "--gen-subset", "test", "--beam", str(beam), "--min-len", str(text.longest), "--max-len-a", "0",
            "--max-len-b", str(text.longest), "--batch-size", "64", "--required-batch-size-multiple", "1",
            "--no-progress-bar", *train_flags.place(settings, "fp16"),
        ]  # fmt: skip
        ran = settings.workshop.run("fairseq_cli.generate", flags[name])
        read = translated(ran.said)
        if ran.status or read is None:
            return False, {"wrong": f"{name}: {ran.trouble or 'it logged no speed'}", "flags": flags}
        seen[name] = read
    differences = _differences(seen["compact"], seen["wide"])
    wrong = ""
    sentences = dict(text.sentences)["test"]
    if any(len(each.hypotheses) != sentences for each in seen.values()):
        wrong = f"of {sentences} sentences {[len(each.hypotheses) for each in seen.values()]} were translated"
    elif "compact search" not in seen["compact"].said:
        wrong = f"it did not take the compact search: {seen['compact'].said}"
    elif settings.device.type == "cpu" and (
        differences["best_differ"] or differences["largest_score_difference"] > _TOLERANCE
    ):
        wrong = f"in fp32 {differences}"
    return not wrong, {
        "wrong": wrong,
        "vocab": vocab,
        "generate": {name: each.tokens_per_second for name, each in seen.items()},
        "tokens": {name: each.tokens for name, each in seen.items()},
        "differences": differences,
        "flags": flags,
        "said": {name: each.said for name, each in seen.items()},
    }


def _text(vocab: int, settings: Settings) -> Text:
    """Sentences of one length, which translations have too."""
    if settings.smoke:
        return Text(vocab, (("train", 20), ("test", 5)), 4, 4)
    return Text(vocab, (("train", 2_000), ("test", 256)), 25, 25)


def _checkpoint(layer: str, data: Path, settings: Settings) -> Path:
    """Of two updates: what is asked for is its form.

    Raises:
        RuntimeError: the training failed.
    """
    folder = settings.workshop.folder / f"checkpoint-{layer.partition(',')[0]}"
    flags = [
        *train_flags.line(layer, data, settings),
        *train_flags.place(settings, "fp16"),
        "--max-update",
        "2",
    ]
    flags += ["--no-save-optimizer-state", "--no-epoch-checkpoints", "--save-dir", str(folder)]
    ran = settings.workshop.run("fairseq_cli.train", flags)
    if ran.status:
        raise RuntimeError(f"training {layer}: {ran.trouble}")
    return folder / "checkpoint_last.pt"


def _differences(one: Translated, other: Translated) -> dict[str, Any]:
    both = [(one.hypotheses[key], other.hypotheses[key]) for key in one.hypotheses if key in other.hypotheses]
    same = [abs(a[0] - b[0]) for a, b in both if a[1] == b[1]]
    return {
        "sentences": len(both),
        "best_differ": len(both) - len(same),
        "largest_score_difference": max(same, default=0.0),
    }


def show(outcome: Outcome) -> None:
    """Speeds with targets; what a step costs; how searches differ in each type."""
    cases = [check for check in outcome.checks if "speed" in check]
    speeds = [_speed(check) for check in cases]
    for check in outcome.checks:
        if "generate" in check:
            told = check["generate"]
            row = ["cascade, fairseq-generate", f"{check['vocab']:,}"]
            row += [f"{told[name]:,.0f}" for name in ("compact", "wide", "stock")]
            speeds.append([*row, f"{told['compact'] / told['wide']:.2f}", "-"])
    if speeds:
        header = ["head", "V", "compact, tokens/s", "V-wide", "softmax", "compact / V-wide", "target"]
        outcome.tables.append(("Beam search, half precision", header, speeds))
    if cases:
        counted = ["operators: compact", "V-wide", "softmax", "kernels: compact"]
        header = ["head", "V", *counted, "waits: compact", "V-wide", "softmax", "target"]
        outcome.tables.append(("A step of beam search", header, [_step(check) for check in cases]))
        header = ["head", "V", "type", "differ", "best differ", "scores differ by", "score lost"]
        rows = [row for check in cases for row in _differ(check)]
        outcome.tables.append(("Compact against V-wide search", header, rows))


def _name(check: dict[str, Any]) -> list[str]:
    return [check["spec"]["head"], f"{check['spec']['vocab']:,}"]


def _speed(check: dict[str, Any]) -> list[str]:
    told = {name: each["tokens_per_second"] for name, each in check["speed"].items()}
    ratio, aim = told["compact"] / told["wide"], RATIOS.get(check["spec"]["vocab"])
    verdict = "-" if aim is None else f"{aim:g}: {'met' if ratio >= aim else 'missed'}"
    numbers = [f"{told[name]:,.0f}" for name in ("compact", "wide", "softmax")]
    return [*_name(check), *numbers, f"{ratio:.2f}", verdict]


def _step(check: dict[str, Any]) -> list[str]:
    per = check["per_step"]
    added = per["compact"]["waits"] - per["softmax"]["waits"]
    verdict = f"{WAITS} above the softmax's: {'met' if added <= WAITS else 'missed'}"
    names = ("compact", "wide", "softmax")
    return [
        *_name(check),
        *(f"{per[name]['operators']:.0f}" for name in names),
        f"{per['compact']['launches']:.0f}",
        *(f"{per[name]['waits']:.1f}" for name in names),
        verdict,
    ]


def _differ(check: dict[str, Any]) -> list[list[str]]:
    return [
        [
            *_name(check),
            dtype,
            f"{each['differ']} of {each['hypotheses']}",
            f"{each['best_differ']} of {each['sentences']}",
            f"{each['largest_score_difference']:.1e}",
            f"{each['mean_score_lost']:.1e}",
        ]
        for dtype, each in check["differences"].items()
    ]


PART = Part("e", "beam search", 150, checks, show)
