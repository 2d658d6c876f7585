"""Part (d): words per second and memory of whole ``fairseq-train`` commands, stock and with each head."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.gpu.fairseq_logs import trained
from scripts.gpu.made_data import made
from scripts.gpu.parts import Check, Outcome, Part, Seen, Settings
from scripts.gpu.train_flags import LAYERS, line, place, size, text, vocabs

#: "0": without cuDNN's attention; "1": with it.
SWITCH = "MHE_CUDNN_ATTENTION"

#: Layers with a target; words per second as a multiple of stock's in fp16, by V.
_TARGETED = ("cascade-tied", "cascade", "sampling")
RATIOS = {32_768: 1.1, 262_144: 1.5}

#: For every layer at the smaller V, fp16: three times what was measured before attention was looked at.
WORDS = (32_768, 3 * 28_800.0)

#: GiB of peak memory below stock's.
SAVED = (262_144, 20.0)


@dataclass(frozen=True)
class Run:
    """A command: layer, V, fp16 or bf16 or fp32, cuDNN's attention "0" or "1", and its repetition."""

    layer: str
    vocab: int
    precision: str
    attention: str
    number: int = 1

    @property
    def name(self) -> str:
        often = f", run {self.number}" if self.number > 1 else ""
        attention = "on" if self.attention == "1" else "off"
        return f"{self.layer}, V = {self.vocab:,}, {self.precision}, cuDNN attention {attention}{often}"


def runs(settings: Settings) -> list[Run]:
    """All commands, the most telling first; what is compared runs close together."""
    if settings.smoke:
        (vocab,) = vocabs(settings)
        cured = [Run(name, vocab, "fp32", "0") for name in LAYERS]
        return [*cured, Run("stock", vocab, "fp32", "1")]
    small, large = vocabs(settings)
    main = ("stock", "cascade-tied", "sampling")
    others = [name for name in LAYERS if name not in main]
    found = [Run(name, vocab, "fp16", "0") for vocab in (small, large) for name in main]
    found += [Run("stock", small, "fp16", "1")]
    found += [Run(name, small, "bf16", "0") for name in main[:2]]
    found += [Run(name, vocab, "fp16", "0") for vocab in (small, large) for name in others]
    found += [Run(name, vocab, "fp16", "0", 2) for vocab in (small, large) for name in main]
    found += [Run(name, small, "fp16", "1") for name in main[1:]]
    found += [Run(name, large, "bf16", "0") for name in main]
    found += [Run(name, large, "fp16", "1") for name in main]
    return found


def checks(settings: Settings) -> Sequence[Check]:
    settings.workshop.open(settings.device.type == "cuda")
    return [Check(run.name, partial(_train, run, settings)) for run in runs(settings)]


def _train(run: Run, settings: Settings) -> Seen:
    """That it ends well, with losses that are numbers; how fast it was and what memory it took."""
    of = size(settings)
    data = made(text(run.vocab, settings), settings)
    flags = [*line(run.layer, data, settings), *place(settings, run.precision)]
    flags += ["--max-update", str(of.updates), "--no-save"]
    ran = settings.workshop.run("fairseq_cli.train", flags, {SWITCH: run.attention})
    seen = trained(ran.said, of.warm_up)
    wrong = ran.trouble
    if not wrong and not seen.is_finite:
        wrong = f"losses {seen.losses}"
    if not wrong and seen.words_per_second is None:
        wrong = "no line of its log tells words per second after the warm-up"
    return not wrong, {
        "wrong": wrong,
        "layer": run.layer,
        "vocab": run.vocab,
        "precision": run.precision,
        "attention": run.attention,
        "words_per_second": seen.words_per_second,
        "updates_per_second": seen.updates_per_second,
        "peak_gib": seen.peak_gib,
        "losses": seen.losses,
        "command_seconds": round(ran.seconds, 1),
        "flags": flags,
        "said": seen.said,
    }


#: (V, precision, attention) -> layer -> its runs.
Groups = dict[tuple[int, str, str], dict[str, list[dict[str, Any]]]]


def show(outcome: Outcome) -> None:
    """A table for each V, type and attention; ratios are of runs in the same one."""
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for check in outcome.checks:
        if check.get("words_per_second"):
            groups[check["vocab"], check["precision"], check["attention"]][check["layer"]].append(check)
    for (vocab, precision, attention), layers in groups.items():
        cudnn = "with" if attention == "1" else "without"
        title = f"fairseq-train, V = {vocab:,}, {precision}, {cudnn} cuDNN attention"
        header = ["layer", "words/s", "updates/s", "times stock", "peak GiB", "below stock", "runs"]
        aims = precision == "fp16" and attention == "0"
        rows = [_row(name, vocab, layers, aims) for name in LAYERS if name in layers]
        outcome.tables.append((title, [*header, "targets"], rows))


def _row(name: str, vocab: int, layers: dict[str, list[dict[str, Any]]], aims: bool) -> list[str]:
    words, peak = _of(layers, name, "words_per_second"), _of(layers, name, "peak_gib")
    against = LAYERS[name].against
    other_words, other_peak = _of(layers, against, "words_per_second"), _of(layers, against, "peak_gib")
    is_stock = name == against
    ratio = words / other_words if words and other_words and not is_stock else None
    saved = other_peak - peak if other_peak is not None and peak is not None and not is_stock else None
    targets = []
    if aims and name in _TARGETED and vocab in RATIOS and ratio is not None:
        targets.append(_verdict(f"{RATIOS[vocab]:g} times stock", ratio >= RATIOS[vocab]))
    if aims and vocab == WORDS[0] and words is not None:
        targets.append(_verdict(f"{WORDS[1]:,.0f} words/s", words >= WORDS[1]))
    if aims and vocab == SAVED[0] and saved is not None:
        targets.append(_verdict(f"{SAVED[1]:g} GiB below stock", saved >= SAVED[1]))
    updates = _of(layers, name, "updates_per_second")
    return [
        name,
        _number(words, ",.0f"),
        _number(updates, ".2f"),
        _number(ratio, ".2f"),
        _number(peak, ".1f"),
        _number(saved, ".1f"),
        str(len(layers[name])),
        "; ".join(targets) or "-",
    ]


def _of(layers: dict[str, list[dict[str, Any]]], name: str, key: str) -> float | None:
    values = [run[key] for run in layers.get(name, []) if run[key] is not None]
    return statistics.median(values) if values else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _verdict(target: str, met: bool) -> str:
    return f"{target}: {'met' if met else 'missed'}"


PART = Part("d", "fairseq-train", 240, checks, show)
