"""Part (g): a language model and a masked one, trained with kernels and without: the same losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from scripts.gpu import train_flags
from scripts.gpu.fairseq_logs import Trained, apart, trained, unlike
from scripts.gpu.made_data import Text, made
from scripts.gpu.parts import Check, Outcome, Part, Seen, Settings

#: How far losses (base 2, a token) and norms of gradients (as a share) may be apart. A log has three digits;
#: draws are the same with kernels and without.
TOLERANCES = {"fp32": (4e-3, 4e-3), "fp16": (0.03, 0.03)}

_KERNELS, _PLAIN = "the output layer runs in kernels", "the output layer runs in plain torch"

KINDS: dict[str, tuple[str, ...]] = {
    "masked language model": (
        "--task", "masked_lm", "--arch", "mhe_roberta", "--criterion", "mhe_masked_lm", "--mask-prob", "0.15",
    ),
    "language model": (
        "--task", "language_modeling", "--arch", "mhe_transformer_lm", "--criterion", "mhe_cross_entropy",
        "--share-decoder-input-output-embed",
    ),
}  # fmt: skip


def checks(settings: Settings) -> Sequence[Check]:
    settings.workshop.open(settings.device.type == "cuda")
    # Kernels of fp32 take longest to compile.
    types = ("fp32",) if settings.smoke else ("fp16", "fp32")
    return [
        Check(f"{kind}, {precision}", partial(_pair, kind, precision, settings))
        for precision in types
        for kind in KINDS
    ]


def _pair(kind: str, precision: str, settings: Settings) -> Seen:
    """That both ways were taken, and lead to the same losses and gradients."""
    data = made(_text(settings), settings)
    flags = [*_line(kind, data, settings), *train_flags.place(settings, precision)]
    runs = [settings.workshop.run("fairseq_cli.train", flags, env) for env in ({}, {"MHE_KERNELS": "0"})]
    seen = {"kind": kind, "precision": precision, "flags": flags}
    for ran in runs:
        if ran.status:
            return False, seen | {"wrong": ran.trouble}
    kernels, plain = (trained(ran.said, 0) for ran in runs)
    wrong = unlike(kernels, plain, *TOLERANCES[precision])
    if not wrong and (not _says(kernels, _KERNELS) or _says(kernels, _PLAIN)):
        wrong = f"the run with kernels did not take them: {kernels.said}"
    elif not wrong and not _says(plain, _PLAIN):
        wrong = f"MHE_KERNELS=0 did not turn kernels off: {plain.said}"
    loss, norm = apart(kernels, plain) if len(kernels.losses) == len(plain.losses) else (None, None)
    return not wrong, seen | {
        "wrong": wrong,
        "losses_apart": loss,
        "norms_apart": norm,
        "kernels": asdict(kernels),
        "plain": asdict(plain),
    }


def _says(run: Trained, beginning: str) -> bool:
    return any(line.startswith(beginning) for line in run.said)


def _text(settings: Settings) -> Text:
    if settings.smoke:
        return Text(train_flags.vocabs(settings)[0], (("train", 30), ("valid", 2)), 3, 7, pairs=False)
    return Text(train_flags.vocabs(settings)[0], (("train", 4_000), ("valid", 10)), 10, 60, pairs=False)


def _line(kind: str, data: Path, settings: Settings) -> list[str]:
    masked = kind.startswith("masked")
    side = "encoder" if masked else "decoder"
    # A masked language model's dictionary has one symbol more.
    codes = [] if masked else ["--mhe-codebook", str(data / "codes")]
    layers, dim, tokens, updates = (1, 16, 12, 2) if settings.smoke else (4, 512, 4096, 8)
    heads = max(1, dim // 64)
    return [
        str(data), *train_flags.PLUGIN, *KINDS[kind], "--mhe-head", "cascade", *codes,
        f"--{side}-layers", str(layers), f"--{side}-embed-dim", str(dim),
        f"--{side}-ffn-embed-dim", str(4 * dim), f"--{side}-attention-heads", str(heads), "--dropout", "0",
        "--attention-dropout", "0", "--tokens-per-sample", "128" if not settings.smoke else "12",
        "--sample-break-mode", "none", "--optimizer", "adam", "--lr", "0.0005", "--max-tokens", str(tokens),
        "--max-update", str(updates), "--disable-validation", "--no-save",
        "--save-dir", str(data / "none"), "--seed", "1",
        "--log-format", "json", "--log-interval", "1",
    ]  # fmt: skip


def show(outcome: Outcome) -> None:
    rows = [
        [check["kind"], check["precision"], f"{check['kernels']['losses'][-1]:.3f}",
         f"{check['losses_apart']:.3f}", f"{check['norms_apart']:.3f}", check["wrong"] or "equal"]
        for check in outcome.checks
        if check.get("losses_apart") is not None
    ]  # fmt: skip
    if rows:
        header = ["model", "type", "last loss", "losses apart", "gradients apart", "seen"]
        outcome.tables.append(("Kernels against plain torch, fairseq-train", header, rows))


PART = Part("g", "language models", 60, checks, show)
