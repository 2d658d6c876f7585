"""A checkpoint of other languages than the task's is refused, with both lists.

Tasks of many languages add a token of each to the dictionary, so another list is another dictionary: of
another size, which the sentence of ``misfit`` says without its reason, or of the same size with tokens that
changed places, with which fairseq goes on.

Seen with ve-fairseq 0.12.3. Can go when fairseq compares the lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from mhe_fairseq.coding.peek import peek, setting, settings_of
from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap

#: How the names of the tasks end that add a token of each language; ``multilingual_denoising`` may.
_ADDING = ("translation_multi_simple_epoch", "translation_from_pretrained_bart")


def install() -> None:
    """Look at a checkpoint before fairseq's functions load it: to train on, and to translate with."""
    wrap(checkpoint_utils, "load_model_ensemble_and_task", _looking_at_all)
    wrap(Trainer, "load_checkpoint", _looking)


def _looking_at_all(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_model_ensemble_and_task(
        filenames: list[str], arg_overrides: Any = None, task: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        for filename in filenames:
            _refuse(filename, task)
        return load(filenames, arg_overrides, task, *args, **kwargs)

    return load_model_ensemble_and_task


def _looking(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_checkpoint(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        _refuse(filename, self.task)
        return load(self, filename, *args, **kwargs)

    return load_checkpoint


def _refuse(filename: str, task: Any) -> None:
    if told := other_languages(filename, task):
        raise MHEError(told)


def other_languages(filename: str, task: Any) -> str | None:
    """What to say of a checkpoint before it is loaded.

    Args:
        filename: of the checkpoint.
        task: that it is loaded for.

    Returns:
        None: both have the same languages, or one dictionary all the same, or one of them has no languages.
    """
    ours = languages_of(getattr(task, "args", None) or getattr(task, "cfg", None))
    dictionary = getattr(task, "target_dictionary", None)
    if ours is None or dictionary is None:
        return None
    state = peek(filename)
    if state is None:
        return None
    model, of_task, weights = settings_of(state, "model"), settings_of(state, "task"), state["model"]
    theirs = languages_of(model) or languages_of(of_task)
    if theirs is None or theirs == ours:
        return None
    if _is_for(weights, model, dictionary.symbols) and not _is_reordered(model, theirs, ours, of_task, task):
        return None
    return (
        f"the checkpoint was trained with the languages {','.join(theirs)} and here they are "
        f"{','.join(ours)}; each has a token in the dictionary, so give --langs {','.join(theirs)}"
    )


def languages_of(args: Any) -> list[str] | None:
    """The languages of a task's flags, in the order of their tokens.

    Args:
        args: of a task, or of a model with the task's among them; as an object or a dictionary.

    Returns:
        None: the task adds no tokens of languages, or the flags do not name them.
    """
    name = setting(args, "task")
    name = (name if isinstance(name, str) else setting(args, "_name")) or ""
    adds = setting(args, "add_lang_token") if name == "multilingual_denoising" else name.endswith(_ADDING)
    if not adds:
        return None
    named, pairs = setting(args, "mhe_langs") or setting(args, "langs"), setting(args, "lang_pairs")
    if not named and pairs and setting(args, "lang_dict") is None:
        pairs = pairs.split(",") if isinstance(pairs, str) else pairs
        named = sorted({lang for pair in pairs for lang in pair.split("-")})
    return (named.split(",") if isinstance(named, str) else list(named)) if named else None


def _is_for(weights: dict[str, Any], args: Any, symbols: list[str]) -> bool:
    """Whether a model is of this dictionary, or of one as large where that is all that is known."""
    from mhe_fairseq.models.options import pinned

    theirs = setting(args, "mhe_dictionary")
    if theirs is not None:
        return bool(theirs == pinned(symbols))
    rows = next((len(value) for name, value in weights.items() if name.endswith("embed_tokens.weight")), None)
    return rows in (None, len(symbols))


def _is_reordered(model_args: Any, theirs: list[str], ours: list[str], of_task: Any, task: Any) -> bool:
    """Whether tokens changed places, which a model without ``mhe_dictionary`` does not tell."""
    if setting(model_args, "mhe_dictionary") is not None or sorted(theirs) != sorted(ours):
        return False
    # A dictionary that has the tokens already has them in its own order.
    fixed = [setting(args, "fixed_dictionary") for args in (of_task, getattr(task, "args", None))]
    return not any(fixed)
