"""A checkpoint that does not fit the model is told in one sentence, and why it does not.

fairseq's trainer says "Cannot load model parameters from checkpoint ...; please ensure that the architectures
match", under three tracebacks; what does not match is in the middle one, a line for every weight. Where it
loads models to translate with, it says that alone. Of an optimizer's state that does not fit torch says "a
parameter group that doesn't match the size of optimizer's group".

Seen with ve-fairseq 0.12.3 (asked about in fairseq issues 2167, 4469, 4533, 5017). Can go when fairseq names
what differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from mhe_fairseq.coding.peek import peek, setting, settings_of
from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap

#: What torch says, in three kinds: names in quotes after the first two.
_MISSING = re.compile(r"Missing key\(s\) in state_dict: ([^\n]*)\. *(?:\n|$)")
_UNEXPECTED = re.compile(r"Unexpected key\(s\) in state_dict: ([^\n]*)\. *(?:\n|$)")
_SHAPE = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[([\d, ]*)\]\) from checkpoint, "
    r"the shape in current model is torch\.Size\(\[([\d, ]*)\]\)"
)

#: The weights that a dictionary gives its length.
_EMBEDDING = "embed_tokens.weight"

#: Settings that decide which tables an output layer and embeddings have.
_SHAPING = (
    "mhe_head", "mhe_tie", "mhe_mixtures", "mhe_bottleneck", "mhe_group_prototypes", "mhe_group_rows",
    "mhe_bias", "mhe_sampling", "share_all_embeddings", "share_decoder_input_output_embed",
)  # fmt: skip

#: Ours only.
_HEAD = "head.codebook_slots"


def install() -> None:
    """Take the place of fairseq's functions that load weights into a model."""
    wrap(checkpoint_utils, "load_model_ensemble_and_task", _fitting)
    wrap(Trainer, "load_checkpoint", _named)


def _fitting(load_all: Callable[..., Any]) -> Callable[..., Any]:
    def load_model_ensemble_and_task(filenames: list[str], *args: Any, **kwargs: Any) -> Any:
        try:
            return load_all(filenames, *args, **kwargs)
        except RuntimeError as error:
            sizes = None if isinstance(error, MHEError) else _dictionaries(str(error))
            if sizes is None:
                raise
            raise MHEError(
                f"the dictionary has {sizes[1]} tokens, and a model of {', '.join(map(str, filenames))} is "
                f"for {sizes[0]}; use the dictionary it was trained with"
            ) from error

    return load_model_ensemble_and_task


def _named(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_checkpoint(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(self, filename, *args, **kwargs)
        except Exception as error:
            if isinstance(error, ValueError) and "parameter group" in str(error):
                raise MHEError(
                    f"checkpoint {filename} has the optimizer's state of other parameters than this model's; "
                    "give the flags it was trained with (--mhe-tie exact and --mhe-sampling shared, if it "
                    "was begun before others were the default), or --reset-optimizer"
                ) from error
            # fairseq raises its own over the one that says what is wrong.
            said, flags = str(error.__context__), other_flags(filename, self.cfg.model)
            told = None if isinstance(error, MHEError) else differences(said, flags)
            if told is None:
                raise
            arch = getattr(self.cfg.model, "arch", None) or getattr(self.cfg.model, "_name", None)
            raise MHEError(f"checkpoint {filename} is of another model than --arch {arch}: {told}") from error

    return load_checkpoint


def other_flags(filename: str, ours: Any) -> list[str]:
    """The flags of ``_SHAPING`` that a checkpoint was trained with and that a model has otherwise.

    Args:
        filename: of the checkpoint.
        ours: the model's settings.
    """
    from mhe_fairseq.models.flags import flag

    state = peek(filename)
    if state is None:
        return []
    found = []
    for name in _SHAPING:
        # None where it is off; YAML has numbers.
        then, now = (setting(each, name) or None for each in (settings_of(state, "model"), ours))
        if str(then) == str(now):
            continue
        if not then:
            found.append(f"no {flag(name)}")
        else:
            found.append(flag(name) if then is True else f"{flag(name)} {then}")
    return found


def differences(said: str, flags: Sequence[str] = ()) -> str | None:
    """What torch said of a state dict that does not fit, as the end of a sentence that says what to do.

    Args:
        said: by torch.
        flags: of the training that are others here.

    Returns:
        None: it is about something else.
    """
    missing, unexpected = (
        re.findall(r'"([^"]+)"', found[1]) if (found := pattern.search(said)) else []
        for pattern in (_MISSING, _UNEXPECTED)
    )
    shapes = [found.groups() for found in _SHAPE.finditer(said)]
    sizes = _dictionaries(said)
    parts = [
        f"{name} is {_shape(theirs)} there and {_shape(ours)} here{_more(len(shapes))}"
        for name, theirs, ours in shapes[:1]
    ]
    parts += [f"it lacks {name}{_more(len(missing))}" for name in missing[:1]]
    parts += [f"it has {name}{_more(len(unexpected))}" for name in unexpected[:1]]
    if not parts:
        return None
    if any(name.endswith(_HEAD) for name in unexpected):
        end = (
            "it has an mhe head, so give --arch mhe_..., or make fairseq's own of it first with `mhe export`"
        )
    elif any(name.endswith(_HEAD) for name in missing):
        end = "it has no mhe head; `mhe convert` gives it one"
    elif sizes is not None:
        end = (
            f"its dictionary has {sizes[0]} tokens and this one {sizes[1]}; `mhe convert` gives a model "
            "another dictionary"
        )
    else:
        end = "give the --arch and the flags it was trained with"
        end += f": {', '.join(flags)}" if flags else ""
    return f"{', '.join(parts)}; {end}"


def _dictionaries(said: str) -> tuple[str, str] | None:
    """Tokens of an embedding in a checkpoint and in a model, where they differ."""
    for name, theirs, ours in (found.groups() for found in _SHAPE.finditer(said)):
        rows = theirs.split(",")[0], ours.split(",")[0]
        if name.endswith(_EMBEDDING) and rows[0] != rows[1]:
            return rows
    return None


def _shape(text: str) -> str:
    return text.replace(", ", "x") or "one number"


def _more(count: int) -> str:
    """Of the weights after the first."""
    return f" (and {count - 1} more)" if count > 1 else ""
