"""Models that give documents labels: a body that reads the text, and a head whose tokens are labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import OutputHead, SoftmaxHead
from mhe_fairseq.models.base import resolved
from mhe_fairseq.models.flags import flag
from mhe_fairseq.models.options import HeadOptions
from mhe_fairseq.models.roberta import dictionary_pin, pinned_fingerprint

#: Heads that have a loss of several labels worth its cost; a product head's digits say too little of labels.
LABEL_HEADS = ("cascade", "softmax", "sampling")

#: Of the model's flags, those that no label model reads.
_NOT_FOR_LABELS = ("mhe_group_rows", "mhe_tie", "mhe_smoothing", "mhe_dropout", "mhe_bias", "mhe_shard")

Model = TypeVar("Model", bound="LabelModel")

#: What a bias adds to the width of features: a 1, and zeros, so that a multiple of 8 stays one.
_BIAS_WIDTH = 8


class LabelNames:
    """The labels of a data set, in the order of their numbers, as ``resolved`` wants a dictionary.

    Args:
        symbols: the labels.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)

    def __len__(self) -> int:
        return len(self.symbols)

    def __getitem__(self, label: int) -> str:
        return self.symbols[label]


class LabelModel(BaseFairseqModel):
    """fairseq's model of ``--task mhe_multilabel``. A subclass says what the body is.

    ``forward`` gives features (B, d), and with ``labels`` the loss of every document, computed inside the
    call: so gradients are reduced and parameters gathered by whatever wraps the model. Every label has a
    bias: features have a 1 behind them.

    Args:
        args: flags, with ``mhe_options``.
        symbols: of the documents' dictionary, to which ``mhe_text`` in the state dict pins the model.
        width: of the body's features.
    """

    has_mhe_head = True
    mhe_criterion = "mhe_multilabel"

    head: OutputHead
    mhe_text: Tensor

    def __init__(self, args: Any, symbols: list[str], width: int) -> None:
        super().__init__()
        self.args = args
        # A buffer: it travels with the weights wherever they go.
        self.register_buffer("mhe_text", dictionary_pin(symbols))
        options: HeadOptions = args.mhe_options
        self.head = options.build(width + _BIAS_WIDTH, None)
        with torch.no_grad():
            _begin_biases(self.head, width)

    @abstractmethod
    def features(self, src_tokens: Tensor) -> Tensor:
        """Shape: (B, T) long -> (B, width)."""

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        labels: Tensor | None = None,
        best: int = 0,
    ) -> Any:
        """Features, or the loss of labels.

        Args:
            src_tokens: (B, T) long.
            src_lengths: not read.
            labels: (B, M) long, -1 behind a document's labels.
            best: how many labels to look for, not differentiable.

        Returns:
            (B, d) without labels; else (B,) losses, with ``best`` in a tuple with (B, best) labels.
        """
        features = self.head_input(src_tokens)
        if labels is None:
            return features
        loss = self.head.label_loss(features, labels)
        return (loss, self._best(features, best)[1]) if best else loss

    def head_input(self, src_tokens: Tensor) -> Tensor:
        """Features with a 1 behind them, for the biases. Shape: (B, T) long -> (B, d)."""
        features = self.features(src_tokens)
        one = features.new_zeros(len(features), _BIAS_WIDTH)
        one[:, 0] = 1.0
        return torch.cat([features, one], dim=1)

    def best_labels(self, src_tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best labels of documents, or all where there are fewer. Not differentiable.

        Shape: (B, T) long -> (B, k) log-scores, descending, and (B, k) labels.
        """
        with torch.no_grad():
            return self._best(self.head_input(src_tokens), k)

    @torch.no_grad()
    def _best(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return self.head.label_topk(features, min(k, self.head.vocab_size))

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {}

    def max_positions(self) -> int | None:
        """Of the longest document; None: any length."""
        return None

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """As fairseq's, after a check that the weights are of this data's dictionary.

        Raises:
            MHEError: they are not, or are of a model of another kind.
        """
        prefix = f"{name}." if name else ""
        pin = state_dict.get(prefix + "mhe_text")
        if pin is None:
            raise MHEError(
                f"the checkpoint is of a model of another --arch; {self.args.arch} gives documents labels"
            )
        theirs, ours = pinned_fingerprint(pin), pinned_fingerprint(self.mhe_text)
        if theirs != ours:
            raise MHEError(
                f"the checkpoint is for documents of another dictionary (fingerprint {theirs}, the data's "
                f"input0/dict.txt has {ours}); prepare the data with the one it was trained with"
            )
        super().upgrade_state_dict_named(state_dict, name)


def build_label_model(kind: Callable[[Any, Any], Model], args: Any, task: Any) -> Model:
    """A label model of checked flags.

    Args:
        kind: of the model, made of flags with ``mhe_options`` and the documents' dictionary.
        args: as fairseq gives them to ``build_model``.
        task: of the training.

    Raises:
        MHEError: another task, a head or a flag that label models do not have.
    """
    names = getattr(task, "label_names", None)
    if names is None:
        raise MHEError(
            f"--arch {getattr(args, 'arch', 'mhe_label_bag')} gives documents labels, which needs --task "
            f"mhe_multilabel; the task is {type(task).__name__}"
        )
    head = getattr(args, "mhe_head", None)
    if head is not None and head not in LABEL_HEADS:
        raise MHEError(f"for labels --mhe-head is one of {', '.join(LABEL_HEADS)}; got {head!r}")
    # What was planned for a checkpoint's head is written into its flags.
    is_new = getattr(args, "mhe_fingerprint", None) is None
    for name in _NOT_FOR_LABELS:
        if is_new and getattr(args, name, None):
            raise MHEError(f"{flag(name)} is not for models that give documents labels; leave it out")
    if is_new and getattr(args, "mhe_groups", None) and head != "sampling":
        raise MHEError("for labels --mhe-groups is for --mhe-head sampling; leave it out")
    with resolved(args, names) as flat:
        return kind(flat, task.source_dictionary)


def _begin_biases(head: OutputHead, column: int) -> None:
    """Rows begin without a bias; one against all with one at which few labels are expected."""
    for weight in head.parameters():
        if weight.dim() > 1:
            weight[..., column:] = 0.0
    if type(head) is SoftmaxHead:
        head.table.weight[:, column] = -torch.tensor(float(head.vocab_size)).log()
