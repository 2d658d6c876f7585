"""Each model of ours beside the one of fairseq's that it is, but for the output layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fairseq.models.bart import BARTModel
from fairseq.models.roberta import RobertaModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_lm import TransformerLanguageModel

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
