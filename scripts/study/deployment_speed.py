#!/usr/bin/env python3
"""Speed of translating a test set in each way that a trained model can be served.

    python scripts/study/deployment_speed.py --sampling sampling/checkpoints/checkpoint_best.pt \
        --cascade cascade/checkpoints/checkpoint_best.pt --data sampling/data-bin \
        --pieces sampling/data/pieces/test.en --reference sampling/data/text/test.de

The sampling head is exported (`mhe export`) and converted (`ct2-fairseq-converter`), as float32 and as int8.
Each way has a process of its own, which loads its model once; the processes take turns, a whole test set a
turn, so that what else the machine does falls on all of them alike. Prints a line of JSON for each: seconds
of every turn, their median, tokens a second, BLEU, the file's size. Starting and loading are not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

#: Source tokens searched at a time, and hypotheses.
BATCH, BEAM = 4096, 5
#: Tokens of a translation at most.
LONGEST = 200

WAYS = ("fairseq", "compact search", "ctranslate2 float32", "ctranslate2 int8")


class SpeedError(Exception):
    """Bad input, said in one sentence."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, what in {
        "sampling": "checkpoint with a sampling or softmax head",
        "cascade": "checkpoint with a cascade or product head, of the same data",
        "data": "folder of fairseq-preprocess",
        "pieces": "source side of the test set, in pieces",
        "reference": "target side, as text",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    parser.add_argument("-s", "--source-lang", default="en", help="default: %(default)s")
    parser.add_argument("-t", "--target-lang", default="de", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        for path in (args.sampling, args.cascade, args.data, args.pieces, args.reference):
            if not path.exists():
                raise SpeedError(f"there is no {path}")
        for name in ("rounds", "threads"):
            if getattr(args, name) < 1:
                raise SpeedError(f"--{name} must be at least 1, got {getattr(args, name)}")
        with tempfile.TemporaryDirectory() as folder:
            for line in measure(args, Path(folder)):
                print(json.dumps(line))
    except SpeedError as error:
        print(f"deployment_speed.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A record of each way.

    Raises:
        SpeedError: a model that cannot be exported, converted or loaded.
    """
    stock, converted = folder / "stock.pt", folder / "converted"
    _run(["mhe", "export", args.sampling, "-o", stock])
    convert = [sys.executable, "-m", "ctranslate2.converters.fairseq", "--model_path", stock]
    convert += ["--data_dir", args.data, "--source_lang", args.source_lang, "--target_lang", args.target_lang]
    for kind in ("float32", "int8"):
        _run([*convert, "--output_dir", converted / kind, "--quantization", kind])
    models = dict(
        zip(WAYS, (stock, args.cascade.resolve(), converted / "float32", converted / "int8"), strict=True)
    )
    lines = args.pieces.read_text(encoding="utf-8").splitlines()
    references = args.reference.read_text(encoding="utf-8").splitlines()
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Connection, Any]] = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    translations: dict[str, list[list[str]]] = {}
    load: list[float] = []
    try:
        for way, path in models.items():
            ours, theirs = context.Pipe()
            task = (theirs, way, str(path), str(args.data.resolve()), lines, args.threads)
            process = context.Process(target=_serve, args=task, daemon=True)
            process.start()
            theirs.close()
            workers[way] = (ours, process)
            _ask(ours, way)  # loads, and translates once for nothing
        for _ in range(args.rounds):
            load.append(os.getloadavg()[0])
            for way in WAYS:
                taken, translations[way] = _ask(workers[way][0], way)
                seconds[way].append(taken)
    finally:
        for line, _ in workers.values():
            line.close()
        for _, process in workers.values():
            process.join(timeout=30)
    return [
        _record(way, models[way], seconds[way], translations[way], references, load, args.threads)
        for way in WAYS
    ]


def _record(
    way: str,
    path: Path,
    seconds: list[float],
    translations: list[list[str]],
    references: list[str],
    load: list[float],
    threads: int,
) -> dict[str, Any]:
    from sacrebleu.metrics import BLEU

    text = ["".join(pieces).replace("\u2581", " ").strip() for pieces in translations]
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    median = statistics.median(seconds)
    tokens = sum(len(pieces) + 1 for pieces in translations)  # with their ends
    return {
        "way": way,
        "seconds": seconds,
        "median": median,
        "sentences": len(translations),
        "tokens_per_second": tokens / median,
        "bleu": BLEU().corpus_score(text, [references]).score,
        "bytes": sum(each.stat().st_size for each in files),
        "threads": threads,
        "load": load,
    }


def _run(line: list[Any]) -> None:
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise SpeedError(f"{Path(str(line[0])).name} {line[1]} {line[2]} failed: {said}")


def _ask(line: Connection, way: str) -> Any:
    try:
        line.send("translate")
        answer = line.recv()
    except (EOFError, BrokenPipeError):
        raise SpeedError(f"the process of {way} ended early; its message is above") from None
    if isinstance(answer, str):
        raise SpeedError(f"{way}: {answer}")
    return answer


def _serve(line: Connection, way: str, path: str, data: str, lines: list[str], threads: int) -> None:
    """Translate the lines as often as asked, and tell how long each time took."""
    warnings.simplefilter("ignore")
    try:
        make = _ctranslate2 if way.startswith("ctranslate2") else _fairseq
        translate = make(way, path, data, threads)
    except Exception as error:  # whatever is wrong with it, the one who asked should hear of it
        line.recv()
        line.send(f"{path} cannot be loaded ({type(error).__name__}: {error})")
        return
    while True:
        try:
            line.recv()
        except EOFError:
            return
        start = time.perf_counter()
        found = translate(lines)
        line.send((time.perf_counter() - start, found))


def _fairseq(way: str, path: str, data: str, threads: int) -> Callable[[list[str]], list[list[str]]]:
    """fairseq's hub; for the exported model its own, without the plugin."""
    import logging

    logging.disable(logging.INFO)
    import torch

    torch.set_num_threads(threads)
    if way == "fairseq":
        from fairseq.models.transformer import TransformerModel as Model
    else:
        from mhe_fairseq.models import MHETransformerModel as Model
    folder, name = os.path.split(path)
    options: dict[str, Any] = {"max_tokens": BATCH, "eval_bleu": False}
    hub = Model.from_pretrained(folder, name, data, **options)
    if way != "fairseq" and type(hub.task).__name__ != "MHETranslationTask":
        raise SpeedError("it was not trained with --task mhe_translation, so it has no compact search")

    def translate(lines: list[str]) -> list[list[str]]:
        found = hub.translate(lines, beam=BEAM, max_len_a=0, max_len_b=LONGEST)
        return [text.split() for text in found]

    return translate


def _ctranslate2(way: str, path: str, data: str, threads: int) -> Callable[[list[str]], list[list[str]]]:
    import ctranslate2

    kind = way.split()[1]
    translator = ctranslate2.Translator(
        path, device="cpu", inter_threads=1, intra_threads=threads, compute_type=kind
    )

    def translate(lines: list[str]) -> list[list[str]]:
        found = translator.translate_batch(
            [each.split() for each in lines],
            beam_size=BEAM,
            max_batch_size=BATCH,
            batch_type="tokens",
            max_decoding_length=LONGEST,
        )
        return [each.hypotheses[0] for each in found]

    return translate


if __name__ == "__main__":
    sys.exit(main())
