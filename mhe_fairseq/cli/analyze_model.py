"""The model of a checkpoint, asked for the probabilities of all tokens."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.models.bart import BARTModel
from torch import Tensor

from mhe_fairseq.cli.checkpoint import building, read_with_data, set_up_task, translates
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.options import MASK, is_added

#: Whose targets are tokens, one at each position that is not padding.
TASKS = (
    "translation", "mhe_translation", "translation_multi_simple_epoch",
    "mhe_translation_multi_simple_epoch", "translation_from_pretrained_bart",
    "mhe_translation_from_pretrained_bart", "language_modeling", "mhe_language_modeling", "masked_lm",
    "denoising", "multilingual_denoising",
)  # fmt: skip

#: Numbers V wide that are held at once, 32 MiB of them.
_WIDE = 2**23

#: Where a state dict has one row a target token.
_TARGET_ROWS = (
    "decoder.head.codebook_slots",
    "encoder.head.codebook_slots",
    "decoder.output_projection.weight",
    "encoder.lm_head.weight",
)


class LoadedModel:
    """A model in eval mode, with its task.

    Args:
        path: of a checkpoint that fairseq wrote, with one of our heads or with a softmax of fairseq's.
        data: folder to read in place of the one it was trained on; several with ':'.
        device: to compute on.
        state: what would be read from ``path``, where it is known already; changed.
        purpose: what the model is for, in errors.

    Attributes:
        task: fairseq's, with the dictionaries of ``data``.
        codebook: the head's; None without a head.
        head: "cascade", ...; "softmax" without a head.
        model: fairseq's.
        side: the part of it that has the output layer.

    Raises:
        MHEError: no such checkpoint, one that is damaged, of another task or dictionary.
    """

    def __init__(
        self,
        path: Path,
        data: str,
        device: torch.device,
        state: dict[str, Any] | None = None,
        purpose: str = "analyze",
    ) -> None:
        is_file = state is None
        if is_file and not path.is_file():
            raise MHEError(f"there is no checkpoint {path}; fairseq-train writes them to its --save-dir")
        self.path, self.device, self.purpose = path, device, purpose
        state = _read(path, data, state, purpose)
        self.task = set_up_task(state, path)
        _check_rows(state, self.task, path, data)
        with building(path, data):
            self.model = _built(path, self.task, state, is_file=is_file).to(device).eval()
        # A masked language model is an encoder with an output layer.
        self.side = getattr(self.model, "decoder", None) or self.model.encoder
        if "features_only" not in inspect.signature(self.side.forward).parameters:
            raise MHEError(
                f"checkpoint {path} is of {type(self.model).__name__}, which has no features apart from its "
                f"probabilities; mhe {purpose} is for transformers"
            )
        head = getattr(self.side, "head", None) if getattr(self.model, "has_mhe_head", False) else None
        self.codebook: Codebook | None = None if head is None else head.codebook
        self.head = "softmax" if head is None else type(head).__name__.removesuffix("Head").lower()

    @property
    def options(self) -> Any:
        """The task's."""
        return self.task.cfg or self.task.args

    def symbols(self) -> list[str]:
        """Of the V target tokens; a dictionary that a task cut short still lists all."""
        dictionary = self.task.target_dictionary
        symbols: list[str] = dictionary.symbols[: len(dictionary)]
        return symbols

    def features(self, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What the output layer reads at each position with a target. Shape: a batch -> (N, d), (N,)."""
        sample = utils.apply_to_sample(lambda tensor: tensor.to(self.device), sample)
        target = sample["target"]
        if not isinstance(target, Tensor):
            raise MHEError(
                f"checkpoint {self.path} predicts past or several tokens at a position; {self.purpose} is "
                "for models that predict the next one"
            )
        with warnings.catch_warnings():
            # torch's, about the masks that fairseq gives its attention.
            warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
            hidden = self.model(**sample["net_input"], features_only=True)[0]
        keep = target.ne(self.task.target_dictionary.pad())
        return hidden[keep], target[keep]

    def in_source(self, sample: dict[str, Any]) -> Tensor | None:
        """Whether each target stands in the source sentence. Shape: a batch -> (N,) bool.

        None where there is no source, or where its numbers are other tokens.
        """
        source, dictionary = self.task.source_dictionary, self.task.target_dictionary
        if "translation" not in self.options._name or source.symbols != dictionary.symbols:
            return None
        target, tokens = sample["target"], sample["net_input"]["src_tokens"]
        found = target.unsqueeze(-1).eq(tokens.unsqueeze(1)).any(dim=-1)
        return found[target.ne(dictionary.pad())]

    def log_probs(self, features: Tensor, target: Tensor, size: int) -> Iterator[tuple[Tensor, slice]]:
        """Exact log-probabilities, a few rows at a time. Shape: (N, d), (N,) -> (n, V) and which rows, each.

        V-wide rows are what heads avoid in training; here the probability of every token is what is asked
        for, once. A few rows at a time take little memory, and more of them would not be faster.

        Args:
            features, target: from ``features``.
            size: width of what the caller makes of a row, V or more.
        """
        rows = max(1, _WIDE // size)
        for start in range(0, len(target), rows):
            which = slice(start, start + rows)
            # An adaptive softmax insists on three dimensions.
            output = self.side.output_layer(features[which][None]), None
            yield self.model.get_normalized_probs(output, log_probs=True, sample=None)[0], which


def _built(path: Path, task: Any, state: dict[str, Any], is_file: bool) -> Any:
    """fairseq's model of a checkpoint; of one that is no file yet, too, which fairseq would look for."""
    if is_file:
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], task=task, state=state)
        return models[0]
    model = task.build_model(state["cfg"].model, from_checkpoint=True)
    model.load_state_dict(state["model"], strict=True, model_cfg=state["cfg"].model)
    return model


def _read(path: Path, data: str, known: dict[str, Any] | None, purpose: str) -> dict[str, Any]:
    """A checkpoint of a task whose targets are tokens at every position."""
    state = read_with_data(path, data, known)
    name = state["cfg"].task._name
    if name not in TASKS:
        raise MHEError(
            f"checkpoint {path} is of --task {name}, whose targets are not tokens at every position; "
            f"{purpose} is for {', '.join(TASKS)}"
        )
    return state


def _check_rows(state: dict[str, Any], task: Any, path: Path, data: str) -> None:
    """Tell a dictionary of another size before torch does, in terms of tables.

    A BART leaves out the last row itself, of ``<mask>``, where the task adds none.
    """
    weights, options = state["model"], state["cfg"].model
    cls = ARCH_MODEL_REGISTRY.get(str(getattr(options, "_name", None) or getattr(options, "arch", None)))
    left_out = int(cls is not None and issubclass(cls, BARTModel) and MASK not in task.target_dictionary)
    both = (
        (_TARGET_ROWS, task.target_dictionary),
        (("encoder.embed_tokens.weight",), task.source_dictionary),
    )
    for names, dictionary in both:
        rows = next((len(weights[name]) for name in names if name in weights), None)
        if rows is not None and rows not in (len(dictionary), len(dictionary) + left_out):
            added = [each for each in dictionary.symbols if is_added(each)]
            with_added = f", {' '.join(added)} of the task among them" if added else ""
            raise MHEError(
                f"checkpoint {path} is for {rows:,} tokens and the dictionary in {data} has "
                f"{len(dictionary):,}{with_added}; give the data it was trained on"
            )


def same_task(one: LoadedModel, other: LoadedModel) -> None:
    """Refuse to compare models that do not predict the same text.

    Raises:
        MHEError: another kind of task, or other languages.
    """

    def kind(model: LoadedModel) -> str:
        cfg = model.options
        name = cfg._name.removeprefix("mhe_")
        if translates(name):
            return f"{name} {cfg.source_lang}-{cfg.target_lang}"
        pairs = getattr(cfg, "lang_pairs", None)
        return f"{name} {','.join(sorted(pairs))}" if pairs else str(name)

    if kind(one) != kind(other):
        raise MHEError(
            f"checkpoint {one.path} is of {kind(one)} and {other.path} of {kind(other)}; only models that "
            "predict the same text can be compared"
        )


def least_positions(models: list[LoadedModel]) -> Any:
    """The longest sentence that every model takes, as fairseq's data sets want to be told."""
    limits = [each.model.max_positions() for each in models]
    return utils.resolve_max_positions(models[0].task.max_positions(), *limits) or math.inf
