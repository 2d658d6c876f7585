"""`mhe convert` without a head to convert to: the same model for another dictionary."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.checkpoint import read_checkpoint, read_with_data, said, set_up_task
from mhe_fairseq.cli.convert_codebook import CONTEXTS, training_text
from mhe_fairseq.cli.convert_languages import set_languages
from mhe_fairseq.cli.convert_run import last_rate
from mhe_fairseq.cli.output import write_checkpoint
from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.coding.regrow import regrow
from mhe_fairseq.coding.symbols import trace
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.options import pinned
from mhe_fairseq.models.regrow import Dictionaries, GrownWeights, most_groups, regrow_weights
from mhe_fairseq.models.settings import set_options


@dataclass(frozen=True)
class Grown:
    """A checkpoint for another dictionary, before it is written.

    Attributes:
        state: what to save.
        old_data: where its dictionary was.
        source, target: symbols of the sides; the same object where they have one dictionary.
        weights: what became of the tables and the codebook.
        rate: the learning rate at the end of the training; None: not known.
        drops_average: the checkpoint had averaged weights (``--store-ema``), which are left out.
        seconds: it took.
    """

    state: dict[str, Any]
    old_data: str
    source: Dictionaries
    target: Dictionaries
    weights: GrownWeights
    rate: float | None
    drops_average: bool
    seconds: float


def run_dictionary(args: argparse.Namespace, source: Path, output: Path, codes: Path) -> int:
    """Convert, write, say what was written.

    Args:
        args: of `mhe convert`.
        source, output: checkpoints.
        codes: codebook file to write, of a model with a head of ours.

    Raises:
        MHEError: as ``grow``; nothing is written then.
    """
    from omegaconf import OmegaConf

    from mhe_fairseq.cli.convert_dictionary_report import report

    with Bars() as bars:
        grown = grow(args, source, bars)
    # What fairseq writes is plain.
    plain = {**grown.state, "cfg": OmegaConf.to_container(grown.state["cfg"], resolve=True, enum_to_str=True)}
    write_checkpoint(output, plain, codes, grown.weights.book)
    report(grown, args, output, codes)
    return 0


def grow(args: argparse.Namespace, path: Path, bars: Bars) -> Grown:
    """Give the checkpoint ``path`` the dictionaries of ``args.data``.

    Args:
        args: ``data``, ``old_data`` (or None) and ``seed``.
        path: of the checkpoint.
        bars: of progress.

    Raises:
        MHEError: the checkpoint's own dictionary is not there, or not its own; the dictionaries are the same;
            a model whose rows are not in tables of one row a token; data without the text that is needed.
    """
    started = time.monotonic()
    state = read_checkpoint(path, {"eval_bleu": False})
    rate = last_rate(state)
    name = f"checkpoint {path}"
    source, target, old_data = _dictionaries(args, state, path)
    if source.origins.changes_nothing and target.origins.changes_nothing:
        raise MHEError(
            f"the dictionary of --data {args.data} is that of {name} already, so there is nothing to "
            "convert; give data with another dictionary, or --head for another output layer"
        )
    cfg = state["cfg"]
    _check_codebook_file(cfg.model, state["model"], target, name)

    def make_book(old: Codebook) -> Codebook:
        fingerprint = symbols_fingerprint(target.new)
        # A softmax reads no digits.
        if not len(target.origins.new) or getattr(cfg.model, "mhe_head", None) == "softmax":
            return regrow(old, target.origins, dictionary=fingerprint)
        text = training_text(args.data, set_up_task(state, path), cfg.task, target_only=False)
        text.count(len(target.new), bars.update)
        counts, vectors, _ = text.neighbours(len(target.new), CONTEXTS, args.seed, bars.update)
        return regrow(old, target.origins, vectors, counts, fingerprint)

    weights = regrow_weights(state["model"], cfg.model, source, target, make_book, name, args.seed)
    if weights.book is not None:
        _keep(cfg.model, weights.old_book, weights.book, target)
    _check_builds(state, weights, path, args.data)
    drops_average = any(str(key).startswith("ema") for key in state["extra_state"])
    seconds = time.monotonic() - started
    return Grown(_saved(state, weights), old_data, source, target, weights, rate, drops_average, seconds)


def _dictionaries(
    args: argparse.Namespace, state: dict[str, Any], path: Path
) -> tuple[Dictionaries, Dictionaries, str]:
    """Both sides' symbols, and the folder the old ones are from; leaves the config with the new data."""
    cfg = state["cfg"]
    old_data = args.old_data or str(getattr(cfg.task, "data", None) or "")
    if args.old_data is None and not Path(old_data.split(os.pathsep)[0] or "?").is_dir():
        raise MHEError(
            f"checkpoint {path} does not hold its symbols, and the data it was trained on, "
            f"{old_data or repr(old_data)}, is not here; say where its dictionary is with --old-data"
        )
    old = _symbols(read_with_data(path, old_data, state), path)
    set_languages(args, cfg, path)
    new = _symbols(read_with_data(path, args.data, state), path)
    sides = [Dictionaries(*pair, trace(*pair)) for pair in zip(old, new, strict=True)]
    if old[0] == old[1] and new[0] == new[1]:
        return sides[1], sides[1], old_data
    return sides[0], sides[1], old_data


def _symbols(state: dict[str, Any], path: Path) -> tuple[list[str], list[str]]:
    """Of the tokens read, and of those predicted."""
    task = set_up_task(state, path)
    try:
        source, target = task.source_dictionary, task.target_dictionary
    except NotImplementedError:
        source = target = None
    if source is None and target is None:
        raise MHEError(
            f"checkpoint {path} is of --task {state['cfg'].task._name}, which has no dictionary of its "
            "source and of its target; tasks of text to text, and of one text, can be given another one"
        )
    source, target = (target if source is None else source), (source if target is None else target)
    read, predicted = ([*each.symbols[: len(each)]] for each in (source, target))
    return read, predicted


def _check_codebook_file(options: Any, weights: dict[str, Any], target: Dictionaries, name: str) -> None:
    """The codebook file of the training, where it is still there, says which dictionary it was made for."""
    given = getattr(options, "mhe_codebook", None)
    slots = next((value for key, value in weights.items() if key.endswith("head.codebook_slots")), None)
    if not given or slots is None or not Path(given).is_file():
        return
    try:
        book = Codebook.load(given)
    except MHEError:
        return
    pinned, own = book.dictionary, symbols_fingerprint(target.old)
    if book.slots.tolist() == slots.tolist() and pinned not in ("", own):
        raise MHEError(
            f"{name} was trained with another dictionary (its codebook {given} was made for fingerprint "
            f"{pinned}) than the one that is there now ({own}); say where that is with --old-data"
        )


def _keep(options: Any, old: Codebook | None, book: Codebook, target: Dictionaries) -> None:
    """Have a model's options say what its state dict has."""
    values: dict[str, Any] = {
        "mhe_lengths": ",".join(map(str, book.lengths)),
        "mhe_fingerprint": book.fingerprint,
        "mhe_dictionary": pinned(target.new),
        "mhe_groups": most_groups(options, book),
        # It is of the old dictionary.
        "mhe_codebook": None,
    }
    signed = getattr(options, "mhe_signature", None)
    if signed and old is not None:
        # The training was what it was.
        fingerprint = symbols_fingerprint(target.new)
        values["mhe_signature"] = f"{signed}|grown:{len(old)}>{len(book)}|dictionary:{fingerprint}"
    set_options(options, **values)


def _check_builds(state: dict[str, Any], weights: GrownWeights, path: Path, data: str) -> None:
    """fairseq's model for the new dictionary takes the weights, all of them."""
    task = set_up_task(state, path)
    cfg = state["cfg"]
    try:
        model = task.build_model(cfg.model, from_checkpoint=True)
        model.load_state_dict(dict(weights.weights), strict=True, model_cfg=cfg.model)
    except MHEError:
        raise
    except Exception as error:  # a model is built in as many ways as there are
        raise MHEError(
            f"checkpoint {path} cannot be given the dictionary of --data {data}: its --arch "
            f"{getattr(cfg.model, '_name', None)} has something else of the dictionary's size ({said(error)})"
        ) from error


def _saved(state: dict[str, Any], weights: GrownWeights) -> dict[str, Any]:
    """The checkpoint, without the optimizer's state and without what another dictionary's losses were."""
    last = state["optimizer_history"][-1]
    return {
        "args": None,
        "cfg": state["cfg"],
        "model": weights.weights,
        "criterion": state.get("criterion"),
        "optimizer_history": [
            {
                "criterion_name": str(last.get("criterion_name")),
                "optimizer_name": str(last.get("optimizer_name")),
                "lr_scheduler_state": {},
                "num_updates": int(last["num_updates"]),
            }
        ],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True},
            "previous_training_time": 0,
        },
    }
