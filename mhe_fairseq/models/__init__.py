"""fairseq models with a multi-head encoding output layer; importing registers them."""

from mhe_fairseq.models.bart import MHEBARTModel
from mhe_fairseq.models.label_bag import MHELabelBagModel
from mhe_fairseq.models.label_roberta import MHELabelRobertaModel
from mhe_fairseq.models.roberta import MHERobertaModel
from mhe_fairseq.models.transformer import MHETransformerModel
from mhe_fairseq.models.transformer_lm import MHETransformerLanguageModel

__all__ = [
    "MHEBARTModel",
    "MHELabelBagModel",
    "MHELabelRobertaModel",
    "MHERobertaModel",
    "MHETransformerLanguageModel",
    "MHETransformerModel",
]
