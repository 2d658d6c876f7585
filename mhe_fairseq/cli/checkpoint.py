"""A fairseq checkpoint, read for a command, and what is wrong with it in one sentence."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mhe_fairseq.errors import MHEError

#: Tasks whose data is one text, with dict.txt beside it.
_OF_ONE_TEXT = ("language_modeling", "masked_lm", "denoising", "multilingual_denoising")


def read_checkpoint(path: Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """As fairseq's commands read it, in the safe way of ``mhe_fairseq.fairseq_fixes.checkpoints``.

    Args:
        path: of a checkpoint that ``fairseq-train`` wrote.
        overrides: values in place of those in its config.

    Raises:
        MHEError: it cannot be read, or is no fairseq checkpoint.
    """
    # Takes seconds, and bad arguments should be told before.
    from fairseq import checkpoint_utils

    try:
        with warnings.catch_warnings():
            # hydra's, about fairseq's own config, which older checkpoints are converted to.
            warnings.simplefilter("ignore", UserWarning)
            state: dict[str, Any] = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
        if not isinstance(state["model"], dict) or not state["cfg"].task._name:
            raise TypeError("no weights, or no task")
    except MHEError:
        raise
    except OSError as error:
        raise MHEError(f"checkpoint {path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # fairseq looks for parts that another file does not have
        raise MHEError(
            f"{path} is not a checkpoint of a fairseq model ({path.stat().st_size:,} bytes, "
            f"{type(error).__name__}); give a file that fairseq-train wrote"
        ) from error
    return state


@contextmanager
def building(path: Path, data: str) -> Iterator[None]:
    """For building the model of a checkpoint: what goes wrong within is one sentence.

    Raises:
        MHEError: it goes wrong.
    """
    try:
        yield
    except MHEError as error:
        raise MHEError(f"checkpoint {path}: {error}") from None
    except Exception as error:  # torch names every table that does not fit, on lines of their own
        raise MHEError(
            f"the model of checkpoint {path} cannot be built for the data {data} ({said(error)}); give the "
            "data it was trained on"
        ) from error


def read_with_data(
    path: Path, data: str | None = None, state: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A checkpoint whose config has what fairseq fills in after reading it, or finds on the machine that
    trains: made for one process of this machine, to build the task and the model from.

    Its ``cfg`` says which data to read and, for a translation, which languages: fairseq-train without -s and
    -t infers them and saves none. Files that the training began with are left out of it.

    Args:
        path: of a checkpoint that ``fairseq-train`` wrote.
        data: folder to read in place of the one it was trained on; several with ':'.
        state: what would be read from there, where it is known already; changed.

    Raises:
        MHEError: it cannot be read; its data, or the dictionaries in it, are not there.
    """
    from fairseq.dataclass.utils import overwrite_args_by_name

    from mhe_fairseq.models.base import STARTED_FROM
    from mhe_fairseq.models.settings import set_options

    # Translating while validating wants the tokenizer's files, which need not be here.
    overrides = {"eval_bleu": False} | ({} if data is None else {"data": data})
    if state is None:
        state = read_checkpoint(path, overrides)
    else:
        overwrite_args_by_name(state["cfg"], overrides)
    cfg = state["cfg"]
    # fairseq would read it again from the flat options, which older checkpoints have instead.
    state["args"] = None
    set_options(cfg.distributed_training, distributed_world_size=1)
    set_options(cfg.model, **{name: None for name in STARTED_FROM if getattr(cfg.model, name, None)})
    set_options(cfg.common, tensorboard_logdir=None, log_file=None, wandb_project=None)
    folder = _folder(cfg.task, path, data is not None)
    name = str(cfg.task._name).removeprefix("mhe_")
    if translates(name):
        sides = (cfg.task.source_lang, cfg.task.target_lang)
        if not all(sides):
            sides = _only_pair(folder, path)
            set_options(cfg.task, source_lang=sides[0], target_lang=sides[1])
        _check_dictionaries([f"dict.{side}.txt" for side in sides], folder, path)
    elif name in _OF_ONE_TEXT:
        _check_dictionaries(["dict.txt"], folder, path)
    return state


def translates(task: str) -> bool:
    """Whether it is a task of one pair of languages, by its name."""
    return task.removeprefix("mhe_") in ("translation", "translation_from_pretrained_bart")


def set_up_task(state: dict[str, Any], path: Path) -> Any:
    """fairseq's task of a checkpoint from ``read_with_data``.

    Raises:
        MHEError: a dictionary that cannot be read.
    """
    from fairseq import tasks

    cfg = state["cfg"].task
    try:
        return tasks.setup_task(cfg, from_checkpoint=True)
    except Exception as error:  # a dictionary that cannot be read, in one of several ways
        raise MHEError(
            f"the data {cfg.data} cannot be read as --task {cfg._name} of checkpoint {path} ({said(error)}); "
            "write it again with fairseq-preprocess"
        ) from error


def said(error: Exception) -> str:
    """The kind of an error and its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _folder(cfg: Any, path: Path, is_given: bool) -> Path:
    """The one of the data's folders that dictionaries are read from."""
    data = str(getattr(cfg, "data", None) or "")
    folder = Path(data.split(os.pathsep)[0])
    if data and folder.is_dir():
        return folder
    if is_given:
        raise MHEError(f"there is no data directory {data or repr(data)}; fairseq-preprocess writes one")
    raise MHEError(
        f"checkpoint {path} was trained on the data {data or repr(data)}, which is not here, in "
        f"{Path.cwd()}; say where it is now"
    )


def _only_pair(folder: Path, path: Path) -> tuple[str, str]:
    """The languages that fairseq infers: those of the files SPLIT.SOURCE-TARGET.LANGUAGE.idx."""
    found = set()
    for file in folder.iterdir():
        match = re.fullmatch(r"[^.]+\.([^.-]+)-([^.-]+)\..+", file.name)
        if match is not None:
            found.add((match[1], match[2]))
    if len(found) == 1:
        return found.pop()
    wrong = f"has several pairs ({', '.join('-'.join(pair) for pair in sorted(found))})"
    raise MHEError(
        f"checkpoint {path} does not say which languages it translates and the data {folder} "
        f"{wrong if found else 'has no pair of languages'}; give a folder with one pair, "
        "or train with -s and -t"
    )


def _check_dictionaries(names: list[str], folder: Path, path: Path) -> None:
    for name in names:
        if not (folder / name).is_file():
            found = sorted(each.name for each in folder.glob("dict*.txt")) or ["none"]
            raise MHEError(
                f"the data {folder} has no {name}, which checkpoint {path} wants (dictionaries there: "
                f"{', '.join(found)}); give the data it was trained on, or other text binarised with its "
                "dictionaries"
            )
