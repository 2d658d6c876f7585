"""Each model of ours beside the one of fairseq's that it is, but for the output layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from fairseq.models.bart import BARTModel
from fairseq.models.roberta import RobertaModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel
from torch import Tensor

from mhe_fairseq.heads.rows.input_map import MAP, mapped
from mhe_fairseq.models.bart import MHEBARTModel
from mhe_fairseq.models.roberta import MHERobertaModel
from mhe_fairseq.models.transformer import MHETransformerModel
from mhe_fairseq.models.transformer_lm import MHETransformerLanguageModel

#: What a masked language model of ours pins its dictionary by.
DICTIONARY = "encoder.mhe_dictionary"


Kind = Literal["translation", "language model", "masked language model"]


@dataclass(frozen=True)
class Family:
    """A model of ours and the one of fairseq's that it becomes, or was.

    Attributes:
        ours, stock: the two.
        kind: what they are for.
        head, embedding, projection: where they lie in the state dict; the projection in fairseq's.
        classifies: it is fine-tuned to classify, too, and has no output layer then.
    """

    ours: type
    stock: type
    kind: Kind
    head: str
    embedding: str
    projection: str
    classifies: bool = False

    @property
    def table(self) -> str:
        """A head's own V x d table; a tied head has none."""
        return self.head + "table.linear.weight"

    @property
    def ignored(self) -> tuple[str, ...]:
        """What only the plugin reads."""
        names = ("codebook_slots", "codebook_lengths", "predictor.weight", "predictor.bias")
        return tuple(self.head + name for name in names)


TRANSFORMER = Family(
    MHETransformerModel,
    TransformerModel,
    "translation",
    head="decoder.head.",
    embedding="decoder.embed_tokens.weight",
    projection="decoder.output_projection.weight",
)
LANGUAGE_MODEL = Family(
    MHETransformerLanguageModel,
    TransformerLanguageModel,
    "language model",
    head="decoder.head.",
    embedding="decoder.embed_tokens.weight",
    projection="decoder.output_projection.weight",
)
ROBERTA = Family(
    MHERobertaModel,
    RobertaModel,
    "masked language model",
    head="encoder.head.",
    embedding="encoder.sentence_encoder.embed_tokens.weight",
    projection="encoder.lm_head.weight",
    classifies=True,
)
BART = Family(
    MHEBARTModel,
    BARTModel,
    "translation",
    head="decoder.head.",
    embedding="decoder.embed_tokens.weight",
    projection="decoder.output_projection.weight",
    classifies=True,
)
#: All of them: what `mhe convert` and `mhe export` take.
FAMILIES = (TRANSFORMER, LANGUAGE_MODEL, ROBERTA, BART)

#: Options of an output layer that is not the embeddings', of the models that have them.
UNTIED = {
    "share_all_embeddings": False,
    "share_decoder_input_output_embed": False,
    "untie_weights_roberta": True,
}


def without_map(family: Family, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same model, of a softmax or a sampling head, untied: its embeddings are what it reads, its rows a
    table of the head's own.

    Args:
        weights: of a model; themselves returned where the head has no map. Tensors are shared.
    """
    if family.head + MAP not in weights:
        return weights
    rows = weights[family.embedding]
    read = mapped(rows, dict(weights), family.head)
    made = {**with_embedding(weights, rows, read), family.table: rows}
    del made[family.head + MAP]
    return made


def with_embedding(weights: Mapping[str, Tensor], old: Tensor, new: Tensor) -> dict[str, Tensor]:
    """Weights with another embedding under each of its names. Shape: (V, d), (V, d)."""
    return {key: new if same(value, old) else value for key, value in weights.items()}


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Both are one tensor of a model: the same memory or, where a file has two of it, as fairseq's mean of
    checkpoints has, the same numbers."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
