"""The languages of a checkpoint for another dictionary, where it shall have others than in its training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.settings import set_options

_FLAGS = ("langs", "lang_dict", "lang_pairs")


def add_language_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags, named as fairseq's tasks name them."""
    parser.add_argument(
        "--langs",
        metavar="AA,...",
        help="another dictionary, of a task of many languages: those that the model shall have, in the order "
        "of their tokens (default: the checkpoint's)",
    )
    parser.add_argument("--lang-dict", metavar="FILE", help="the languages, one a line, in place of --langs")
    parser.add_argument(
        "--lang-pairs",
        metavar="AA-BB,...",
        help="the pairs that it shall have, of translation_multi_simple_epoch (default: the checkpoint's)",
    )


def check_not_given(args: argparse.Namespace) -> None:
    """Refuse what is of another dictionary where the head is to be another.

    Raises:
        MHEError: a flag is given.
    """
    for flag, value in _given(args, "old_data", *_FLAGS).items():
        raise MHEError(
            f"{flag} {value} is for another dictionary, --head {args.head} for another head: convert twice, "
            "first without --head"
        )


def set_languages(args: argparse.Namespace, cfg: Any, path: Path) -> None:
    """Have a checkpoint's config list the languages and pairs of the flags, and read their dictionaries.

    Args:
        args: ``langs``, ``lang_dict`` and ``lang_pairs``, None where not given.
        cfg: changed; that of the checkpoint ``path``.

    Raises:
        MHEError: a task that has none; a pair of a language that is not listed.
    """
    from mhe_fairseq.tasks.languages import check_known, read_languages, read_pairs

    given = _given(args, *_FLAGS)
    task, changed = cfg.task, dict[str, Any]()
    has_pairs, listed = hasattr(task, "lang_pairs"), args.langs and args.langs.split(",")
    if given and not (hasattr(task, "langs") and (has_pairs or args.lang_pairs is None)):
        flag, value = given.popitem()
        raise MHEError(
            f"{flag} {value} is for a task of many {'pairs' if flag == '--lang-pairs' else 'languages'}; "
            f"checkpoint {path} is of --task {task._name}"
        )
    if has_pairs:
        # Those of the data are read in place of files that the training had.
        changed = {"fixed_dictionary": None, "source_dict": None, "target_dict": None}
        pairs = read_pairs(task.lang_pairs if args.lang_pairs is None else args.lang_pairs)
        if args.langs is None and args.lang_dict is None:
            langs = read_languages(task.langs, task.lang_dict, pairs)
        else:
            langs = read_languages(listed, args.lang_dict, pairs)
        check_known(pairs, langs)
        changed |= {"lang_pairs": pairs, "langs": langs, "lang_dict": None, "mhe_langs": langs}
    elif given:
        # As these tasks take them.
        changed["langs"] = ",".join(read_languages(listed, args.lang_dict, []))
    for section in (task, cfg.model):
        set_options(section, **{name: value for name, value in changed.items() if hasattr(section, name)})


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Flags that were given, and their values."""
    values = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    return {flag: value for flag, value in values.items() if value is not None}
